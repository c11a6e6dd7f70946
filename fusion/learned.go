package fusion

import "gonum.org/v1/gonum/mat"

// Learned holds the weights that a strategy computed for one block. They take the place of the block's own; a nil matrix
// leaves the weight as it was (queries, output) or to the fusion by weights (keys, values). Every transform that a
// strategy applies to heads is inside these weights: nothing is added to the graph for it.
//
// Matrices are [in, out], in the block's natural order of heads: column h·d+c of Query is channel c of query head h,
// column g·d+c of Key channel c of fused key head g; row h·dv+c of Output meets channel c of the context of query head
// h. Channel c of a head is the c-th of its columns in the model's own weight, counted upwards. A bias is used only where
// the model's projection has one.
type Learned struct {
	Query, Key, Value, Output                 *mat.Dense
	QueryBias, KeyBias, ValueBias, OutputBias []float64
}
