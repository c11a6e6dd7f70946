// Package chart draws small charts as SVG: lines over numbered or measured places, on a linear or a logarithmic axis.
package chart

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Palette has the colours of Okabe and Ito, told apart by people who do not see all colours; its black, which
// axes have, and its yellow, which is faint on white, are changed.
var Palette = []color.RGBA{
	{0x00, 0x72, 0xb2, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff},
	{0xe6, 0x9f, 0x00, 0xff}, {0x56, 0xb4, 0xe9, 0xff}, {0xb8, 0x9b, 0x00, 0xff}, {0x77, 0x77, 0x77, 0xff},
}

// glyphs tell apart what two colours next to each other may not; all are filled, so that thin strokes do not get lost.
var glyphs = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}}

// Glyph is the mark of the i-th line.
func Glyph(i int) draw.GlyphDrawer { return glyphs[i%len(glyphs)] }

var (
	ink  = color.RGBA{0, 0, 0, 0xff}
	rule = color.RGBA{0xdc, 0xdc, 0xdc, 0xff}
)

// Series is one line of a chart. A NaN in Y leaves a gap; on a logarithmic axis so does what is not above 0.
type Series struct {
	Name string
	X, Y []float64
	// Steps draws the line as the outline of columns that begin at X.
	Steps bool
}

// Chart is a chart without its size.
type Chart struct {
	X, Y   string // labels of the axes
	LogY   bool
	Series []Series
	// Ticks names places of the x axis; the whole numbers in range when nil.
	Ticks map[float64]string
	// Bound draws a dashed horizontal line, such as a limit, when it is not 0.
	Bound     float64
	BoundName string
}

// Size of a chart in points, and of the legend beside it.
const (
	width, height = 590, 240
	beside        = 178
	letters       = 12
)

// SVG draws the chart as an SVG element for a page that defines the custom properties --ink and --rule, the colours of
// letters and of the grid; without them it has dark letters. It is empty when there is nothing to draw.
func (c Chart) SVG() (string, error) {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	p.X.Label.Text, p.Y.Label.Text = c.X, c.Y
	p.X.Label.Padding, p.Y.Label.Padding = vg.Points(4), vg.Points(4)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = rule, rule
	p.Add(grid)
	legend := plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.Padding, legend.ThumbnailWidth = vg.Points(3), vg.Points(22)
	low, high := math.Inf(1), math.Inf(-1)
	left, right := math.Inf(1), math.Inf(-1)
	for i, s := range c.Series {
		runs := c.runs(s)
		for j, run := range runs {
			line, points, err := plotter.NewLinePoints(run)
			if err != nil {
				return "", fmt.Errorf("chart of %s: %w", s.Name, err)
			}
			line.Color, line.Width = Palette[i%len(Palette)], vg.Points(1.5)
			points.Color, points.Shape, points.Radius = line.Color, Glyph(i), vg.Points(2.5)
			if s.Steps {
				line.StepStyle = plotter.PostStep
				p.Add(line)
			} else {
				p.Add(line, points)
			}
			switch {
			case j > 0:
			case s.Steps:
				legend.Add(s.Name, line)
			default:
				legend.Add(s.Name, line, points)
			}
			for _, q := range run {
				low, high = min(low, q.Y), max(high, q.Y)
				left, right = min(left, q.X), max(right, q.X)
			}
		}
	}
	if low > high {
		return "", nil
	}
	if c.Bound != 0 {
		y := c.Bound
		if c.LogY {
			y = math.Log10(y)
		}
		bound := plotter.NewFunction(func(float64) float64 { return y })
		bound.Color, bound.Dashes, bound.Width = ink, []vg.Length{vg.Points(5), vg.Points(4)}, vg.Points(1)
		p.Add(bound)
		legend.Add(c.BoundName, bound)
		low, high = min(low, y), max(high, y)
	}
	if !c.LogY {
		low = min(low, 0)
	}
	room := 0.06 * max(high-low, 0.3)
	if !c.LogY {
		room = 0.06 * (high - low)
	}
	p.Y.Min, p.Y.Max = low-room, high+room
	if !c.LogY {
		p.Y.Min = low
		if high == low {
			p.Y.Max = low + 1
		}
	} else {
		p.Y.Tick.Marker = Decades{}
	}
	p.X.Min, p.X.Max = left, right
	if left == right {
		p.X.Min, p.X.Max = left-0.5, right+0.5
	}
	p.X.Tick.Marker = c.ticks()
	for _, style := range []*text.Style{&p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &legend.TextStyle} {
		style.Font.Variant, style.Font.Size = "Sans", vg.Points(letters)
	}

	canvas := vgsvg.New(vg.Points(width), vg.Points(height))
	whole := draw.Crop(draw.New(canvas), vg.Points(4), -vg.Points(4), vg.Points(4), -vg.Points(6))
	p.Draw(draw.Crop(whole, 0, -vg.Points(beside), 0, 0))
	legend.Draw(draw.Crop(whole, vg.Points(width-8-beside+8), 0, 0, -vg.Points(8)))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", err
	}
	_, svg, _ := strings.Cut(b.String(), "<svg") // without the prologue of a file
	return "<svg" + themed(svg), nil
}

// themed puts the page's colours in the place of black and of the grid's grey, and fonts of the same widths behind the one
// that may be missing.
func themed(svg string) string {
	return strings.NewReplacer(
		"font-family:Liberation Sans", "fill:var(--ink,#222);font-family:Liberation Sans,Arial,Helvetica,sans-serif",
		hex(ink), "var(--ink,#222)", hex(rule), "var(--rule,#ddd)",
	).Replace(svg)
}

func hex(c color.RGBA) string { return fmt.Sprintf("#%02X%02X%02X", c.R, c.G, c.B) }

// runs are the stretches of a series without a gap.
func (c Chart) runs(s Series) []plotter.XYs {
	var out []plotter.XYs
	open := false
	for i, y := range s.Y {
		if c.LogY {
			y = math.Log10(y)
		}
		if math.IsNaN(y) || math.IsInf(y, 0) {
			open = false
			continue
		}
		if !open {
			out, open = append(out, nil), true
		}
		out[len(out)-1] = append(out[len(out)-1], plotter.XY{X: s.X[i], Y: y})
	}
	return out
}

// mostTicks is how many labels an axis has room for.
const mostTicks = 12

func (c Chart) ticks() plot.Ticker {
	if c.Ticks == nil {
		return whole{}
	}
	var out plot.ConstantTicks
	for x, label := range c.Ticks {
		out = append(out, plot.Tick{Value: x, Label: label})
	}
	slices.SortFunc(out, func(a, b plot.Tick) int {
		if a.Value < b.Value {
			return -1
		}
		return 1
	})
	for i, every := 0, (len(out)+mostTicks-1)/mostTicks; i < len(out); i++ {
		if i%every != 0 {
			out[i].Label = ""
		}
	}
	return out
}

// whole marks the whole numbers of an axis, each where there is room, else every 2nd, 5th, 10th, 20th …
type whole struct{}

func (whole) Ticks(low, high float64) (out []plot.Tick) {
	every := 1.0
	for i := 0; (high-low)/every > mostTicks; i++ {
		every *= []float64{2, 2.5, 2}[i%3]
	}
	for x := math.Ceil(low/every) * every; x <= high; x += every {
		out = append(out, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'f', -1, 64)})
	}
	return out
}

// Decades marks an axis of common logarithms: 1, 2 and 5 of each power of ten, powers alone where there are many of them,
// more where there is not even one. (The logarithmic scale of the library leaves room for the axis's name where it would be
// on a linear one.)
type Decades struct{}

// Ticks implements plot.Ticker.
func (Decades) Ticks(low, high float64) (out []plot.Tick) {
	labels := []float64{1, 2, 5}
	switch {
	case high-low > 3.5:
		labels = labels[:1]
	case high-low < 0.8:
		labels = []float64{1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9}
	}
	every := max(1, math.Round((high-low)/8))
	for e := math.Floor(low); e <= high; e++ {
		for _, m := range []float64{1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9} {
			t := plot.Tick{Value: e + math.Log10(m)}
			if slices.Contains(labels, m) && math.Mod(e, every) == 0 {
				t.Label = strconv.FormatFloat(m*math.Pow(10, e), 'g', 3, 64)
			}
			if t.Value >= low && t.Value <= high && (t.Label != "" || m == math.Trunc(m) && high-low <= 3.5) {
				out = append(out, t)
			}
		}
	}
	return out
}
