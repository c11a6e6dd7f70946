package report

import (
	"fmt"

	"onnx-dha/verify"
)

// headMap shows which heads of a block were fused.
type headMap struct {
	Block, Lowering string
	Heads           int
	Rows            []mapRow
}

// mapRow is the heads of one kind in their old order, each in the colour of its group.
type mapRow struct {
	Kind  string
	After int
	Note  string
	Cells []mapCell
}

type mapCell struct {
	Head, Group, Colour int
	Weight              string  // in the fused head, empty for learned tensors
	Strength            float64 // 0 to 1, the share of the weight in its group
}

// colours is the number of colours of groups in the page.
const colours = 8

func mapHeads(b verify.BlockSummary) headMap {
	m := headMap{Block: b.Block, Lowering: b.Lowering, Heads: b.Heads}
	for _, s := range []struct {
		kind string
		verify.HeadMap
	}{{"K", b.Key}, {"V", b.Value}} {
		r := mapRow{Kind: s.kind, After: s.After, Cells: make([]mapCell, s.Before)}
		if s.Learned {
			r.Note = "learned"
		}
		for g, group := range s.Groups {
			for j, h := range group {
				if h < 0 || h >= len(r.Cells) {
					continue
				}
				c := mapCell{Head: h, Group: g, Colour: g % colours, Strength: 1}
				if g < len(s.Weights) && j < len(s.Weights[g]) {
					w := s.Weights[g][j]
					c.Weight = fmt.Sprintf("%.3g", w)
					c.Strength = share(w, s.Weights[g])
				}
				r.Cells[h] = c
			}
		}
		m.Rows = append(m.Rows, r)
	}
	return m
}

// share is |w| over the largest of its group, from 0 to 1.
func share(w float64, group []float64) float64 {
	most := 0.0
	for _, x := range group {
		most = max(most, x, -x)
	}
	if most == 0 {
		return 0
	}
	return max(w, -w) / most
}
