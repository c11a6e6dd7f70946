package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the present output of commands into the documents")

// session is a block of a document that shows a command and what it prints.
var session = regexp.MustCompile("(?s)```console\n(.*?)```\n")

// TestDocumentedSessions runs every command that a document shows in a console block and compares what it prints: to the
// letter, but for "…" on a line of its own, which stands for any lines. Output that differs from machine to machine
// belongs in a text block. `go test ./cmd/onnx-dha -run DocumentedSessions -update` brings the blocks up to date.
func TestDocumentedSessions(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	out := t.TempDir()
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, page := range append(pages, "README.md") {
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		text := session.ReplaceAllStringFunc(string(data), func(block string) string {
			blocks++
			body := session.FindStringSubmatch(block)[1]
			var shown strings.Builder
			for part := range strings.SplitSeq("\n"+body, "\n$ ") {
				line, want, _ := strings.Cut(part, "\n")
				if line == "" {
					continue
				}
				args := strings.Fields(line)
				if args[0] != program {
					t.Errorf("%s: %q is no command of this program", page, line)
					continue
				}
				for i, a := range args {
					if strings.HasPrefix(a, "out/") {
						args[i] = filepath.Join(out, a[len("out/"):])
					}
				}
				_ = os.Remove(filepath.Join(out, "dha.yaml"))
				_, stdout, stderr := invoke(args[1:]...)
				got := strings.ReplaceAll(stdout+stderr, out, "out")
				if !matches(want+"\n", got) {
					if !*update {
						t.Errorf("%s: %s prints\n%s\nand not\n%s", page, line, got, want)
					}
					want = strings.TrimSuffix(got, "\n")
				}
				shown.WriteString("$ " + line + "\n" + strings.TrimSuffix(want, "\n") + "\n")
			}
			return "```console\n" + shown.String() + "```\n"
		})
		if *update && text != string(data) {
			if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if blocks < 3 {
		t.Errorf("%d console blocks were found in the documents", blocks)
	}
}

// matches compares output with what a document shows.
func matches(shown, got string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(shown, "\n")), "\n…", "(?s:.*?)")
	return regexp.MustCompile(`^` + pattern + `\n*$`).MatchString(got)
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		shown, got string
		want       bool
	}{
		{"a\nb\n", "a\nb\n", true},
		{"a\nb\n", "a\nc\n", false},
		{"a\n…\nd\n", "a\nb\nc\nd\n", true},
		{"a\n…\n", "a\nb\n", true},
		{"a\n…\nd\n", "a\nb\n", false},
		{"a.c\n", "abc\n", false},
	} {
		if got := matches(tc.shown, tc.got); got != tc.want {
			t.Errorf("%q against %q: %v", tc.shown, tc.got, got)
		}
	}
}
