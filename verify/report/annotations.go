package report

import (
	"fmt"
	"io"
	"strings"

	"onnx-dha/verify"
)

// Annotations writes one line for each broken gate, as GitHub's runner reads them from a job's output: an error with the
// gate, by how much it is broken and where first; a warning for a gate that was not measured; a notice when all is well.
func Annotations(w io.Writer, r *verify.Report) error {
	var b strings.Builder
	for _, g := range r.Gates {
		switch {
		case g.Unmeasured != "":
			annotate(&b, "warning", "onnx-dha: "+title(g.Section), g.String())
		case !g.Passed:
			annotate(&b, "error", "onnx-dha: "+title(g.Section), g.String())
		}
	}
	if l := r.Layers; l != nil && l.Error != nil {
		annotate(&b, "error", "onnx-dha: rewrite error", fmt.Sprintf("first in layer %d, %s of %s", l.Error.Layer, l.Error.Point, l.Error.Block))
	}
	if !r.ProvidersPassed() {
		annotate(&b, "error", "onnx-dha: providers", verify.ErrProviders.Error())
	}
	if r.Passed() {
		annotate(&b, "notice", "onnx-dha", pair(r)+": every gate is kept")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

var (
	annotationText     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	annotationProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

func annotate(b *strings.Builder, level, title, message string) {
	fmt.Fprintf(b, "::%s title=%s::%s\n", level, annotationProperty.Replace(title), annotationText.Replace(message))
}
