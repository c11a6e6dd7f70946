package rewrite

import (
	"fmt"
	"strings"

	"onnx-dha/graph"
)

// ONNX Runtime's generation operators make the first, empty caches of a decoder themselves. For GPT-2 they read the number
// of heads off past_0 and take it for keys and values of all layers (contrib_ops/cpu/transformers/subgraph_gpt.cc); for an
// encoder and a decoder that gives no caches of its first step, off the encoder's first output (subgraph_t5_encoder.cc).

// search verifies that the operators can make the caches of a rewritten decoder.
func (e *editor) search() error {
	var failed error
	e.g.All(func(n *graph.Node) bool {
		switch {
		case n.Domain != "com.microsoft":
		case n.OpType == "GreedySearch", n.OpType == "Sampling", n.OpType == "BeamSearch", n.OpType == "WhisperBeamSearch":
			failed = e.madeAlike(n)
		}
		return failed == nil
	})
	return failed
}

// madeAlike verifies that the caches that n makes have the number of heads that it makes them with.
func (e *editor) madeAlike(n *graph.Node) error {
	var first *graph.Value
	want := int64(0)
	for _, j := range n.Joints() {
		past := j.Inputs[0]
		encoded := false
		for _, r := range j.Results {
			encoded = encoded || r.Graph != past.Graph && !strings.HasPrefix(bodyOf(r.Graph), "init")
		}
		if encoded {
			continue // the encoder gives it, as large as it is
		}
		heads, ok := e.headsOf(past)
		switch {
		case !ok:
		case first == nil:
			first, want = past, heads
		case heads != want:
			return fmt.Errorf("%v makes the first caches of all layers alike: %q would have %d heads and %q %d; give keys and values of all layers the same number of heads",
				n, first.Name, want, past.Name, heads)
		}
	}
	enc := n.Subgraphs["encoder"]
	if first == nil || len(enc) == 0 {
		return nil
	}
	for _, v := range enc[0].Outputs {
		if !strings.HasPrefix(v.Name, "present_") {
			continue
		}
		if heads, ok := e.headsAfter(v); ok && heads != want {
			return fmt.Errorf("%v makes the first caches with as many heads as its encoder's output %q has, %d; %q would have %d: give both the same number of heads",
				n, v.Name, heads, first.Name, want)
		}
		break
	}
	return nil
}

// bodyOf is the name of the attribute that holds a body.
func bodyOf(g *graph.Graph) string {
	for attr, bodies := range g.Owner.Subgraphs {
		for _, b := range bodies {
			if b == g {
				return attr
			}
		}
	}
	return ""
}

// headsOf reads the number of heads off the declared type that a past is going to have: the third axis from the end.
func (e *editor) headsOf(v *graph.Value) (int64, bool) {
	dims := e.typeOf(v).GetTensorType().GetShape().GetDim()
	if len(dims) < 4 || dims[len(dims)-3].GetDimValue() < 1 {
		return 0, false
	}
	return dims[len(dims)-3].GetDimValue(), true
}

// headsAfter is headsOf for an output, whose declaration follows only once all is done.
func (e *editor) headsAfter(v *graph.Value) (int64, bool) {
	if l, ok := e.links[v]; ok {
		return int64(l.is.Len()), true
	}
	return e.headsOf(v)
}
