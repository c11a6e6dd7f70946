package attention

import "onnx-dha/graph"

// base is the activation behind a projection's input, through operators that only change its form.
func base(v *graph.Value) *graph.Value {
	for range 8 {
		n := v.Producer
		if n == nil || !(n.Is("Reshape") || n.Is("Identity") || n.Is("Cast") || n.Is("Transpose") || n.Is("QuantizeLinear") || n.Is("DequantizeLinear")) || n.In[0] == nil {
			break
		}
		v = n.In[0]
	}
	return v
}

// sameStream reports whether queries and keys that are projected from these activations belong to one sequence: walking
// back position by position (norms, projections, residual sums, but no attention) they meet.
func sameStream(q, k *graph.Value) bool {
	if base(q) == base(k) {
		return true
	}
	keys := stream(k, 64)
	for v := range stream(q, 4096) {
		if keys[v] {
			return true
		}
	}
	return false
}

// stream lists up to limit activations that v is made of position by position, the nearest first.
func stream(v *graph.Value, limit int) map[*graph.Value]bool {
	seen := map[*graph.Value]bool{v: true}
	queue := []*graph.Value{v}
	for len(queue) > 0 && len(seen) < limit {
		n := queue[0].Producer
		queue = queue[1:]
		if n == nil {
			continue
		}
		row, ok := movers[n.OpType]
		product := n.Is("MatMul") || n.Is("Gemm")
		if !product && (!ok || !isDefaultDomain(n) && !row.anyDomain) {
			continue
		}
		if product && !fromConstant(n.Input(1)) {
			continue
		}
		for i, x := range n.In {
			if x == nil || seen[x] || x.Const() != nil || product && i > 0 || !product && row.data != nil && !row.data(i) {
				continue
			}
			seen[x] = true
			queue = append(queue, x)
		}
	}
	return seen
}

// fromConstant reports whether a value is a constant behind operators of one input.
func fromConstant(v *graph.Value) bool {
	for range 8 {
		if v == nil || v.Const() != nil {
			return v != nil
		}
		if v.Producer == nil {
			return false
		}
		v = v.Producer.Input(0)
	}
	return false
}
