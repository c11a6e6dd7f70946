package report

import (
	"bytes"
	"context"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A browser shows the page as it is meant: dark on light or light on dark as the reader's system is, with every section,
// and nothing wider than the window.
func TestHTMLInChromium(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed")
	}
	dir := t.TempDir()
	if keep := os.Getenv("DHA_SCREENSHOTS"); keep != "" {
		dir = keep
	}
	var b bytes.Buffer
	if err := HTML(&b, full()); err != nil {
		t.Fatal(err)
	}
	// The probe stands in a copy only: the page itself has no script.
	probe := `<script>document.title = "wide=" + (document.documentElement.scrollWidth > innerWidth) + " figures=" +
		[...document.querySelectorAll("figure svg")].filter(s => s.getBoundingClientRect().height > 100).length</script></body>`
	path := filepath.Join(dir, "report.html")
	if err := os.WriteFile(path, bytes.Replace(b.Bytes(), []byte("</body>"), []byte(probe), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		common := []string{"--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir=" + filepath.Join(t.TempDir(), "profile"), "--window-size=1200,2600"}
		c := exec.CommandContext(ctx, browser, append(append(common, args...), "file://"+path)...)
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		return string(out)
	}
	if dom := run("--dump-dom"); !strings.Contains(dom, "<title>wide=false figures=5</title>") {
		_, title, _ := strings.Cut(dom, "<title>")
		title, _, _ = strings.Cut(title, "</title>")
		t.Errorf("the page says %q, want nothing too wide and 5 figures", title)
	}
	for scheme, setting := range map[string]string{"light": "1", "dark": "0"} {
		shot := filepath.Join(dir, scheme+".png")
		run("--screenshot="+shot, "--blink-settings=preferredColorScheme="+setting)
		img := readPNG(t, shot)
		paper := luminance(img, 2, 2)
		if dark := paper < 0.5; dark != (scheme == "dark") {
			t.Errorf("%s: the paper has luminance %.2f", scheme, paper)
		}
		// The heading and the charts are read against the paper.
		most := 0.0
		for y := range 1200 {
			for x := range 600 {
				most = max(most, contrast(paper, luminance(img, x, y)))
			}
		}
		if most < 7 {
			t.Errorf("%s: the strongest contrast is %.1f, want 7 (WCAG 2.1, 1.4.6)", scheme, most)
		}
	}
}

func readPNG(t *testing.T, path string) image.Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// luminance is a pixel's, from 0 to 1, gamma taken as 2.
func luminance(img image.Image, x, y int) float64 {
	r, g, b, _ := img.At(x, y).RGBA()
	linear := func(c uint32) float64 { return float64(c) * float64(c) / (0xffff * 0xffff) }
	return 0.2126*linear(r) + 0.7152*linear(g) + 0.0722*linear(b)
}

// contrast is the ratio of two luminances (WCAG 2.1).
func contrast(a, b float64) float64 { return (max(a, b) + 0.05) / (min(a, b) + 0.05) }
