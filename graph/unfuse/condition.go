package unfuse

import "onnx-dha/graph"

// maxCondition bounds the nodes between a condition and the sizes that it is made of.
const maxCondition = 10

// relations are the operators that conditions on sizes are made of, of one or two whole numbers; false is 0.
var relations = map[string]func(a, b int64) int64{
	"Greater":        func(a, b int64) int64 { return truth(a > b) },
	"GreaterOrEqual": func(a, b int64) int64 { return truth(a >= b) },
	"Less":           func(a, b int64) int64 { return truth(a < b) },
	"LessOrEqual":    func(a, b int64) int64 { return truth(a <= b) },
	"Equal":          func(a, b int64) int64 { return truth(a == b) },
	"And":            func(a, b int64) int64 { return truth(a != 0 && b != 0) },
	"Or":             func(a, b int64) int64 { return truth(a != 0 || b != 0) },
	"Xor":            func(a, b int64) int64 { return truth((a != 0) != (b != 0)) },
	"Not":            func(a, _ int64) int64 { return truth(a == 0) },
	"Mod":            modulo,
}

// passes are operators that give their first input on, as far as one number goes.
var passes = map[string]bool{"Identity": true, "Cast": true, "Squeeze": true, "Unsqueeze": true, "Reshape": true}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// modulo has the sign of the divisor, as Mod of whole numbers has.
func modulo(a, b int64) int64 {
	if b == 0 {
		return 0
	}
	r := a % b
	if r != 0 && (r < 0) != (b < 0) {
		return r + b
	}
	return r
}

// number returns the only element of v where it follows from the sizes; it looks at most budget nodes back.
func (e *evaluation) number(v *graph.Value, budget int) (int64, bool) {
	if known, ok := e.facts.Known(v); ok {
		if len(known.Ints) != 1 || known.Floats != nil {
			return 0, false
		}
		if x, ok := known.Ints[0].Eval(e.sizes); ok {
			return x, true
		}
	}
	if v == nil || v.Producer == nil || budget == 0 || !v.Producer.Is(v.Producer.OpType) {
		return 0, false
	}
	n := v.Producer
	a, ok := e.number(n.Input(0), budget-1)
	if !ok || passes[n.OpType] {
		return a, ok
	}
	relation, ok := relations[n.OpType]
	if !ok {
		return 0, false
	}
	b := int64(0)
	if len(n.In) > 1 {
		if b, ok = e.number(n.In[1], budget-1); !ok {
			return 0, false
		}
	}
	return relation(a, b), true
}
