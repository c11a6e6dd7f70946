package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"onnx-dha/graph/quant"
	"onnx-dha/rewrite"
)

// printQuantised names how the blocks' weights are quantised, once for those with the same schemes.
func (d *inspection) printQuantised(w io.Writer) {
	var lists []string
	names := map[string][]string{}
	for _, b := range d.Blocks {
		places := []weightPlace{b.Query, b.Key, b.Value}
		if b.Output != nil {
			places = append(places, *b.Output)
		}
		var schemes []string
		for _, p := range places {
			if p.Scheme != "" && !slices.Contains(schemes, p.Scheme) {
				schemes = append(schemes, p.Scheme)
			}
		}
		if len(schemes) == 0 {
			continue
		}
		list := strings.Join(schemes, "; ")
		if names[list] == nil {
			lists = append(lists, list)
		}
		names[list] = append(names[list], b.Name)
	}
	for _, list := range lists {
		fmt.Fprintf(w, "\nquantised: %s: %s\n", list, strings.Join(names[list], ", "))
	}
}

// requantised is a quantised weight that was given other numbers, or one part of it.
type requantised struct {
	Block   string `json:"block"`
	Part    string `json:"part"` // query, key, value, output, or several joined by "+"
	Weight  string `json:"weight"`
	Scheme  string `json:"scheme"`
	Numbers int64  `json:"numbers"` // that were quantised again; copies keep their codes
	// Rounding is the root of the mean squared error that quantising these numbers again added, over that of their squares.
	Rounding float64 `json:"added_rounding"`
	rounding quant.Rounding
}

// describeRequantised reads what quantising again cost. Weights are quantised while a model is saved; they are not again.
func describeRequantised(res *rewrite.Result) ([]requantised, error) {
	var out []requantised
	for _, r := range res.Requantised {
		cost, err := r.Rounding()
		if err != nil {
			return nil, fmt.Errorf("block %q: %s: %w", r.Block, r.Weight, err)
		}
		out = append(out, requantised{r.Block, r.Part, r.Weight, r.Scheme, cost.Numbers, cost.Relative(), cost})
	}
	return out, nil
}

// printRequantised sums up the weights of each scheme.
func printRequantised(w io.Writer, all []requantised) {
	var schemes []string
	sums := map[string]*quant.Rounding{}
	weights := map[string]map[string]bool{}
	for _, r := range all {
		if sums[r.Scheme] == nil {
			schemes = append(schemes, r.Scheme)
			sums[r.Scheme], weights[r.Scheme] = &quant.Rounding{}, map[string]bool{}
		}
		sums[r.Scheme].Add(r.rounding)
		if r.Numbers > 0 {
			weights[r.Scheme][r.Block+"\x00"+r.Weight] = true
		}
	}
	for _, s := range schemes {
		if n := len(weights[s]); n > 0 {
			fmt.Fprintf(w, "quantised again     %s: %s, added rounding %.2g %%\n", s, plural(n, "weight"), 100*sums[s].Relative())
		}
	}
}
