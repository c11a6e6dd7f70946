package unfuse

import (
	"fmt"

	"onnx-dha/graph"
)

func init() {
	for _, op := range []string{"FusedMatMul", "TransposeMatMul"} {
		rows["com.microsoft."+op] = row{attrs: []string{"alpha", "transA", "transB", "transBatchA", "transBatchB"}, required: 2, inputs: 2, outputs: 1, expand: fusedMatMul}
	}
	rows["MatMul"] = row{required: 2, inputs: 2, outputs: 1, expand: stackedWeight, applies: func(n *graph.Node) bool {
		w := n.Input(1).Const()
		return w != nil && len(w.Dims()) == 3
	}}
}

// fusedMatMul expands com.microsoft.FusedMatMul: alpha·A·B with either operand transposed.
func fusedMatMul(w *writer) error {
	for _, a := range []string{"transBatchA", "transBatchB"} {
		if w.n.Int(a, 0) != 0 {
			return fmt.Errorf("attribute %s is not expanded", a)
		}
	}
	elem, err := w.elem(w.in(0))
	if err != nil {
		return err
	}
	var in [2]*graph.Value
	for i, flag := range []string{"transA", "transB"} {
		in[i] = w.in(i)
		if w.n.Int(flag, 0) == 0 {
			continue
		}
		rank, err := w.rank(in[i])
		if err != nil {
			return err
		}
		if rank < 2 {
			continue // a vector is not transposed
		}
		if t := in[i].Const(); t != nil && rank == 2 {
			d := t.Dims()
			if in[i], err = w.part(i, "transposed", part{perm: []int{1, 0}, dims: []int64{d[1], d[0]}}); err != nil {
				return err
			}
			continue
		}
		var perm []int64
		for a := range rank {
			perm = append(perm, int64(a))
		}
		perm[rank-1], perm[rank-2] = perm[rank-2], perm[rank-1]
		in[i] = w.transpose(in[i], perm...)
	}
	y, err := w.times(w.op("MatMul", in[0], in[1]), elem, float64(w.n.Float("alpha", 1)))
	if err != nil {
		return err
	}
	w.result(0, y)
	return nil
}

// stackedWeight makes a MatMul with a constant of three axes one with a matrix: a weight [1, D, E] loses its first axis,
// a weight [N, D, H] of one matrix for each head, which meets [B, 1, S, D], becomes [D, N·H].
func stackedWeight(w *writer) error {
	d := w.in(1).Const().Dims()
	rank, err := w.rank(w.in(0))
	if err != nil {
		return err
	}
	switch {
	case d[0] == 1 && rank >= 3:
		m, err := w.part(1, "matrix", part{dims: d[1:]})
		if err != nil {
			return err
		}
		w.result(0, w.op("MatMul", w.in(0), m))
		return nil
	case rank == 4:
		if one, err := w.dim(w.in(0), 1); err != nil || one != 1 {
			break
		}
		m, err := w.part(1, "matrix", part{perm: []int{1, 0, 2}, dims: []int64{d[1], d[0] * d[2]}})
		if err != nil {
			return err
		}
		w.result(0, w.toHeads(w.op("MatMul", w.squeeze(w.in(0), 1), m), d[0], d[2]))
		return nil
	}
	return fmt.Errorf("the weight %q has dims %v; it meets an input of %d axes in a way that is not expanded", w.in(1).Name, d, rank)
}
