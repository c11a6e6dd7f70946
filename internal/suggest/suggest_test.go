package suggest

import "testing"

func TestEditDistance(t *testing.T) {
	// Independent of the bounded three-row form: the textbook recursion on prefixes.
	var slow func(a, b string) int
	slow = func(a, b string) int {
		switch {
		case a == "" || b == "":
			return len(a) + len(b)
		case a[len(a)-1] == b[len(b)-1]:
			return slow(a[:len(a)-1], b[:len(b)-1])
		}
		d := 1 + min(slow(a[:len(a)-1], b), slow(a, b[:len(b)-1]), slow(a[:len(a)-1], b[:len(b)-1]))
		if i, j := len(a), len(b); i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
			d = min(d, 1+slow(a[:i-2], b[:j-2]))
		}
		return d
	}
	words := []string{"", "a", "ab", "ba", "abc", "acb", "cab", "h.0.attn", "h.0.atn", "h.1.attn", "hattn"}
	for _, a := range words {
		for _, b := range words {
			for _, limit := range []int{1, 3, 9} {
				if got, want := editDistance(a, b, limit), min(limit, slow(a, b)); got != want {
					t.Errorf("%q to %q within %d: %d, want %d", a, b, limit, got, want)
				}
			}
		}
	}
}

func TestDidYouMean(t *testing.T) {
	commands := []string{"inspect", "rewrite", "verify"}
	for s, want := range map[string]string{
		"inspct": `; did you mean "inspect"?`, "rewrtie": `; did you mean "rewrite"?`, "VERIFY": "", "bench": "", "": "",
	} {
		if got := DidYouMean(s, commands); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
