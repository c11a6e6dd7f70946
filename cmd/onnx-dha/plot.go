package main

import (
	"bytes"
	"cmp"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"onnx-dha/internal/chart"
)

// What can be drawn over the size of the cache.
const (
	klMetric         = "kl"
	perplexityMetric = "perplexity"
)

func init() { choices["metric"] = []string{klMetric, perplexityMetric} }

// plotForm is "svg" or "html" by the name of a file, else empty.
func plotForm(path string) string {
	switch form := strings.ToLower(strings.TrimPrefix(filepath.Ext(path), ".")); form {
	case "svg", "html":
		return form
	}
	return ""
}

// palette has the colours of Okabe and Ito, told apart by people who do not see all colours; its black, which
// axes have, and its yellow, which is faint on white, are changed. A strategy has the same in every drawing.
var palette = []color.RGBA{
	{0x44, 0x44, 0x44, 0xff}, {0x56, 0xb4, 0xe9, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xb8, 0x9b, 0x00, 0xff},
	{0x00, 0x72, 0xb2, 0xff}, {0xe6, 0x9f, 0x00, 0xff}, {0xcc, 0x79, 0xa7, 0xff}, {0xd5, 0x5e, 0x00, 0xff},
}

// leastDrawn is where smaller values are drawn: a logarithmic axis has no zero.
const leastDrawn = 1e-6

// curve is a line of a plot.
type curve struct {
	strategy string
	points   plotter.XYs // share of the cache in %, common logarithm of the metric; by share
}

// curves are the lines of a metric, the worst at the smallest cache first, as they lie in the plot.
func (c *comparison) curves(metric string) []curve {
	var out []curve
	for _, r := range c.Rows[1:] {
		y := r.KL
		if metric == perplexityMetric {
			y = r.Perplexity
		}
		if r.Refused != "" || y == nil || math.IsInf(*y, 0) {
			continue
		}
		i := slices.IndexFunc(out, func(c curve) bool { return c.strategy == r.Strategy })
		if i < 0 {
			i, out = len(out), append(out, curve{strategy: r.Strategy})
		}
		out[i].points = append(out[i].points, plotter.XY{X: 100 * *r.Share, Y: math.Log10(max(*y, leastDrawn))})
	}
	for _, c := range out {
		slices.SortStableFunc(c.points, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
	}
	slices.SortStableFunc(out, func(a, b curve) int { return cmp.Compare(b.points[0].Y, a.points[0].Y) })
	return out
}

// svg draws a metric over the size of the cache.
func (c *comparison) svg(metric string) ([]byte, error) {
	curves := c.curves(metric)
	if len(curves) == 0 {
		return nil, fmt.Errorf("no row has a %s to draw", metric)
	}
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = "KV cache kept, % of the original's bytes", "KL to the original, nats a token"
	if c.Rows[0].Top1 == nil {
		p.Y.Label.Text = "error of the output, share of its mean square"
	}
	if metric == perplexityMetric {
		p.Y.Label.Text = "perplexity"
	}
	p.Title.Text = fmt.Sprintf("%s, %s", filepath.Base(c.Model), plural(c.Positions, "held-out position"))
	p.Title.Padding, p.X.Label.Padding, p.Y.Label.Padding = vg.Points(8), vg.Points(6), vg.Points(4)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xdc}, color.Gray{0xdc}
	p.Add(grid)
	legend := plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.Padding, legend.ThumbnailWidth = vg.Points(4), vg.Points(28)
	low, high := math.Inf(1), math.Inf(-1)
	for _, curve := range curves {
		line, points, err := plotter.NewLinePoints(curve.points)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", curve.strategy, err)
		}
		i := slices.Index(strategyNames(), curve.strategy)
		line.Color, line.Width = palette[i%len(palette)], vg.Points(1.5)
		points.Color, points.Shape, points.Radius = line.Color, chart.Glyph(i), vg.Points(3.5)
		p.Add(line, points)
		legend.Add(curve.strategy, line, points)
		for _, q := range curve.points {
			low, high = min(low, q.Y), max(high, q.Y)
		}
	}
	if before := c.Rows[0].Perplexity; metric == perplexityMetric && before != nil {
		y := math.Log10(*before)
		base := plotter.NewFunction(func(float64) float64 { return y })
		base.Color, base.Dashes, base.Width = color.Gray{0x60}, []vg.Length{vg.Points(5), vg.Points(4)}, vg.Points(1)
		p.Add(base)
		legend.Add(originalRow, base)
		low, high = min(low, y), max(high, y)
	}
	widest := 0.0
	for _, curve := range curves {
		widest = max(widest, curve.points[len(curve.points)-1].X)
	}
	p.X.Min, p.X.Max = 0, min(100, 1.2*widest)
	p.X.Tick.Marker, p.Y.Tick.Marker = percents(c.Rows[1:]), chart.Decades{}
	room := 0.06 * max(high-low, 0.3)
	p.Y.Min, p.Y.Max = low-room, high+room

	for _, style := range []*text.Style{&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &legend.TextStyle} {
		style.Font.Variant = "Sans"
	}
	legend.YPosition = draw.PosCenter

	const width, height, beside = 720, 440, 110 // points; the legend stands beside the plot
	canvas := vgsvg.New(vg.Points(width), vg.Points(height))
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())
	whole = draw.Crop(whole, vg.Points(10), -vg.Points(10), vg.Points(10), -vg.Points(10))
	p.Draw(draw.Crop(whole, 0, -vg.Points(beside), 0, 0))
	legend.Draw(draw.Crop(whole, vg.Points(width-20-beside+14), 0, 0, -vg.Points(30)))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, err
	}
	// Where the font is missing, one of the same widths takes its place.
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif")), nil
}

// percents marks the shares asked for on the axis of the cache's size, with 0 and 100.
func percents(rows []compared) plot.ConstantTicks {
	marks := []float64{0, 100}
	for _, r := range rows {
		// Labels closer than this run into each other.
		if x := 100 * r.KV; !slices.ContainsFunc(marks, func(m float64) bool { return math.Abs(m-x) < 3 }) {
			marks = append(marks, x)
		}
	}
	slices.Sort(marks)
	var out plot.ConstantTicks
	for _, x := range marks {
		out = append(out, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'g', 3, 64) + " %"})
	}
	return out
}

// page is a comparison for a browser; nothing in it comes from elsewhere.
var page = template.Must(template.New("comparison").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}}</title>
<style>
body { font: 15px/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; color: #222; background: #fff; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:not([align]), td:not([align]) { text-align: left; }
.scroll { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>{{.Title}}</h1>
<p>{{.Head}}</p>
{{range .Plots}}<figure>
{{.}}</figure>
{{end}}<div class="scroll">
{{.Table}}
</div>
{{range .Remarks}}<p>{{.}}</p>
{{end}}</body>
</html>
`))

// draw makes the file of a plot: an SVG of the metric, or an HTML page of all metrics that there are, with the table.
func (c *comparison) draw(form, metric string) ([]byte, error) {
	if form == "svg" {
		return c.svg(metric)
	}
	var plots []template.HTML
	for _, metric := range choices["metric"] {
		if len(c.curves(metric)) == 0 {
			continue
		}
		svg, err := c.svg(metric)
		if err != nil {
			return nil, err
		}
		_, svg, _ = bytes.Cut(svg, []byte("<svg")) // without the prologue of a file
		plots = append(plots, template.HTML("<svg"+string(svg)))
	}
	t := c.table(false)
	t.Style().HTML.CSSClass = "comparison"
	var b bytes.Buffer
	err := page.Execute(&b, map[string]any{
		"Title": fmt.Sprintf("%s with shared heads", filepath.Base(c.Model)), "Head": c.head(), "Plots": plots,
		"Table": template.HTML(t.RenderHTML()), "Remarks": c.remarks(),
	})
	return b.Bytes(), err
}
