package testmodels

import (
	"math"

	"onnx-dha/graph"
)

// debertaArch is DeBERTa (He et al., arXiv 2006.03654): no absolute positions; scores add what a query says to the
// distance of a key and what a key says to that of the query (section 3.1, content-to-position and position-to-content),
// both by the projections of the content, as version 3 shares them (arXiv 2111.09543). Distances are counted as
// transformers counts them.
func debertaArch(o Options) arch {
	a := bertArch(o)
	a.types, a.position, a.reach = false, disentangled, 3
	a.scale /= math.Sqrt(3)
	return a
}

// distance returns the row of the table of distances for a query and a key.
func (a *arch) distance(query, key int) int {
	return min(max(query-key+a.reach, 0), 2*a.reach-1)
}

// disentangledBias returns the bias that distances make in layer i for queries and keys [head][position].
func (r *Reference) disentangledBias(i int, queries, keys [][]vec) func(h, query, key int) float64 {
	a := r.a
	var relativeQ, relativeK []vec
	for row := range 2 * a.reach {
		x := r.w["distances.weight"][row*a.model : (row+1)*a.model]
		relativeQ, relativeK = append(relativeQ, r.linear(layer(i, "q"), x)), append(relativeK, r.linear(layer(i, "k"), x))
	}
	return func(h, query, key int) float64 {
		at := a.distance(query, key)
		return a.scale * (dot(queries[h][query], r.head(relativeK[at], h)) + dot(keys[h][key], r.head(relativeQ[at], h)))
	}
}

// debertaAttention is DisentangledSelfAttention of version 2 and 3: products of three dims, distances picked by
// GatherElements from products with all of them, masked scores filled before and after the softmax.
func debertaAttention(e *emitter, s site) wire {
	a := e.a
	batch, seq := e.dim(s.x, 0, e.o.Batch), e.dim(s.x, 1, e.o.Seq)
	merged := e.times(batch, num(a.heads))
	split := func(x wire, batch, seq size) wire {
		x = e.transpose(e.view(x, batch, seq, num(a.heads), num(-1)), 0, 2, 1, 3)
		return e.view(x, num(-1), seq, num(a.headDim))
	}
	distances := e.unsqueeze(e.weights("rel_embeddings.weight", "distances.weight", 2*a.reach, a.model), 0)
	// project applies one layer to the states and to the distances, which are the same for the whole batch.
	project := func(module, w string) (content, relative wire) {
		e.in(module, func() {
			weight := e.init(e.habits.weight("MatMul"), transposed(e.w[layer(s.i, w)+".weight"], a.attnDim(), a.model), a.model, a.attnDim())
			bias := e.weights(e.param("bias"), layer(s.i, w)+".bias", a.attnDim())
			linear := func(x wire) wire { return e.op("Add", bias, e.op("MatMul", x, weight)) }
			content = split(linear(s.x), batch, seq)
			relative = split(linear(distances), num(1), num(2*a.reach))
			relative = e.op("Tile", relative, e.shape(batch, num(1), num(1)))
		})
		return content, relative
	}
	q, relativeQ := project("query_proj", "q")
	k, relativeK := project("key_proj", "k")
	v := split(e.linear("value_proj", layer(s.i, "v"), s.x, a.attnDim(), a.model), batch, seq)
	scaled := func(x wire) wire { return e.op("Div", x, e.f(1/a.scale)) }
	scores := e.op("MatMul", q, scaled(e.transpose(k, 0, 2, 1)))

	queries, keys := e.unsqueeze(e.arange(num(0), seq), 1), e.unsqueeze(e.arange(num(0), seq), 0)
	rows := e.op("Add", e.op("Sub", queries, keys), e.i(a.reach))
	rows = e.op("Min", e.op("Max", rows, e.i(0)), e.i(2*a.reach-1))
	picked := func(x, rows wire) wire {
		rows = e.op("Expand", e.unsqueeze(rows, 0), e.shape(merged, seq, seq))
		return e.node("GatherElements", []wire{x, rows}, graph.IntAttr("axis", 2))
	}
	contentToPosition := picked(e.op("MatMul", q, e.transpose(relativeK, 0, 2, 1)), rows)
	positionToContent := picked(e.op("MatMul", k, e.transpose(relativeQ, 0, 2, 1)), e.transpose(rows, 1, 0))
	bias := e.op("Add", scaled(contentToPosition), scaled(e.transpose(positionToContent, 0, 2, 1)))
	scores = e.view(e.op("Add", scores, bias), batch, num(a.heads), seq, seq)
	p := e.op("Where", s.visible, e.softmax(e.hide(s.visible, scores), -1), e.f(0))
	y := e.op("MatMul", e.view(p, merged, seq, seq), v)
	y = e.unheads(e.view(y, batch, num(a.heads), seq, num(a.headDim)), batch, seq)
	return e.linear("output/dense", layer(s.i, "o"), y, a.model, a.attnDim())
}
