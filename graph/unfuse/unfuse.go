// Package unfuse expands fused operators, in memory, into primitive operators that compute the same, so that whoever
// follows heads through a graph needs to know primitives only. An operator is one row of a table. An If between two forms
// of one product, as a rewrite leaves it, is one too: it gives way to the form that is right for every length.
//
// What an expansion computes is what ONNX Runtime's kernel computes, in the same order where the order can be seen in
// the result (masks are summed before they meet the scores, a soft-cap comes before a mask). Scores of 16-bit models are
// scaled, masked and normalised in float32, as the runtime's kernels do; the products stay in the model's type.
package unfuse

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// Expansion is one fused operator, or one call of a function of the model, that primitives took the place of.
type Expansion struct {
	Op   string // with its domain where that is not ai.onnx
	Node string // the node as messages name it
	// Key identifies the node in another copy of the model: the name of its first output as the file has it, behind the place
	// of the body that it lies in. For an operator inside a function it is the name after inlining.
	Key string
	// Nodes took the node's place. What several expansions share (a mask) is listed with the first.
	Nodes []*graph.Node
	// Assumes says under which condition on the inputs the expansion is exact, empty where it always is.
	Assumes string

	fixed   string // why a block whose product lies in it cannot be rewritten, empty where it can
	node    *graph.Node
	inputs  []*graph.Value // of node, before it was removed
	results []*graph.Value // what took the place of its outputs, nil where nothing was asked for
	weights []weight
}

// Original returns the fused node, which is no longer in the graph, with the inputs that it had and what took the place of
// its outputs (nil where nothing reads one).
func (e *Expansion) Original() (n *graph.Node, inputs, results []*graph.Value) {
	return e.node, e.inputs, e.results
}

// Refusal is a fused operator that stays as it is, and why.
type Refusal struct {
	Node *graph.Node
	Why  string
}

// row says how one operator is expanded. Attributes, inputs and outputs that a row does not list are refused, so that an
// expansion never drops what a newer version of the operator means.
type row struct {
	attrs           []string
	required        int // inputs, from the first, that must be there
	inputs, outputs int
	expand          func(*writer) error
	why             string                 // no expansion can say what the operator does: why
	applies         func(*graph.Node) bool // nil: always; false leaves a node alone without a refusal
	// returns says that a rewrite may put the operator back, over fewer key/value heads: what it alone read stays.
	returns bool
	// anyOpset says that the expansion has no operators but the node's own.
	anyOpset bool
}

// rows is the table, by domain and operator. It is filled by the files that hold the rows.
var rows = map[string]row{}

// opName names an operator as the table does.
func opName(n *graph.Node) string {
	if n.Domain == "" || n.Domain == "ai.onnx" {
		return n.OpType
	}
	return n.Domain + "." + n.OpType
}

// oldestOpset is the ai.onnx opset from which the primitives that expansions are made of exist (Range, and negative
// axes).
const oldestOpset = 11

// maxPasses bounds how deep functions may call functions.
const maxPasses = 64

// Expand replaces the fused operators of m that only accepts (nil: all) by primitives, also in bodies, calls of the model's
// own functions first. New nodes are called <name of the fused node>/<operator>. Operators that cannot be expanded stay
// and are listed with the reason. On an error m holds what was expanded so far: functions, and choices between forms.
func Expand(m *graph.Model, only func(*graph.Node) bool) ([]Expansion, []Refusal, error) {
	var done []Expansion
	refused := map[*graph.Node]string{}
	for range maxPasses {
		exps, why, err := inlineAll(m, only)
		if err != nil {
			return nil, nil, err
		}
		for n, w := range why {
			refused[n] = w
		}
		if len(exps) == 0 {
			break
		}
		done = append(done, exps...)
	}
	if len(done) > 0 {
		dropUnusedFunctions(m)
	}
	open := func(n *graph.Node) bool { return refused[n] == "" && (only == nil || only(n)) }
	// A choice between forms of a product may lie in a branch of another: the inner ones go first.
	for more := true; more; {
		exps, err := expandAll(m, func(n *graph.Node) bool { return n.Is("If") && open(n) }, refused)
		if err != nil {
			return nil, nil, err
		}
		done, more = append(done, exps...), len(exps) > 0
	}
	exps, err := expandAll(m, open, refused)
	if err != nil {
		return nil, nil, err
	}
	done = append(done, exps...)
	var refusals []Refusal
	m.Graph.All(func(n *graph.Node) bool {
		if why, ok := refused[n]; ok {
			refusals = append(refusals, Refusal{n, why})
		}
		return true
	})
	return done, refusals, nil
}

// expandAll expands every operator of the table that accepts holds for in one patch.
func expandAll(m *graph.Model, accepts func(*graph.Node) bool, refused map[*graph.Node]string) ([]Expansion, error) {
	var todo []*graph.Node
	m.Graph.All(func(n *graph.Node) bool {
		r, ok := rows[opName(n)]
		if ok && accepts(n) && (r.applies == nil || r.applies(n)) {
			todo = append(todo, n)
		}
		return true
	})
	if len(todo) == 0 {
		return nil, nil
	}
	s := &session{m: m, p: graph.NewPatch(m.Graph), facts: graph.Infer(m.Graph), opset: m.Opset(""), shared: map[string]*graph.Value{}, compared: map[string]error{}, work: maxWork}
	var done []Expansion
	for _, n := range todo {
		exp, err := s.expand(n)
		if err != nil {
			refused[n] = err.Error()
			continue
		}
		done = append(done, *exp)
	}
	if len(done) == 0 {
		return nil, nil // what refused expansions had prepared is forgotten with the patch
	}
	keep := m.Graph.Dead()
	if _, err := s.p.Apply(); err != nil {
		return nil, fmt.Errorf("expanding fused operators: %w", err)
	}
	for _, e := range done {
		if !rows[e.Op].returns {
			continue
		}
		for _, v := range e.inputs {
			switch {
			case v == nil:
			case v.Producer != nil:
				keep[v.Producer] = true
			default:
				keep[v] = true
			}
		}
	}
	m.Graph.RemoveDead(keep)
	return done, nil
}

// expand prepares one node's expansion. On an error what was prepared has no readers and is removed with the dead nodes.
func (s *session) expand(n *graph.Node) (*Expansion, error) {
	defer s.p.In(n.Graph)()
	r := rows[opName(n)]
	if r.why != "" {
		return nil, errors.New(r.why)
	}
	if s.opset < oldestOpset && !r.anyOpset {
		return nil, fmt.Errorf("the model imports opset %d of ai.onnx; %s is expanded from opset %d on", s.opset, opName(n), oldestOpset)
	}
	for _, a := range n.Proto.Attribute {
		if !slices.Contains(r.attrs, a.GetName()) {
			return nil, fmt.Errorf("attribute %s of %s is not one that is expanded", a.GetName(), opName(n))
		}
	}
	for i := range r.required {
		if n.Input(i) == nil {
			return nil, errMissing
		}
	}
	for i, v := range n.In {
		if v != nil && i >= r.inputs {
			return nil, fmt.Errorf("input %d (%q) of %s is not one that is expanded", i, v.Name, opName(n))
		}
	}
	for i, v := range n.Out {
		if v != nil && len(v.Users()) > 0 && i >= r.outputs {
			return nil, fmt.Errorf("output %d (%q) of %s is used, but not one that is expanded", i, v.Name, opName(n))
		}
	}
	w := &writer{session: s, n: n, base: baseName(n), exp: &Expansion{Op: opName(n), Node: n.String(), Key: key(n), node: n, inputs: slices.Clone(n.In)}}
	if err := r.expand(w); err != nil {
		return nil, err
	}
	w.commit()
	return w.exp, nil
}

// assume adds a condition.
func (e *Expansion) assume(what string) {
	if e.Assumes != "" {
		e.Assumes += "; "
	}
	e.Assumes += what
}

// key identifies a node: the name of its first output, behind the nodes and attributes of the bodies around it.
func key(n *graph.Node) string {
	g := n.Graph
	if g.Owner == nil {
		return firstOutput(n)
	}
	for attr, bodies := range g.Owner.Subgraphs {
		if i := slices.Index(bodies, g); i >= 0 {
			return fmt.Sprintf("%s\x00%s %d\x00%s", key(g.Owner), attr, i, firstOutput(n))
		}
	}
	return firstOutput(n)
}

func firstOutput(n *graph.Node) string {
	for _, o := range n.Out {
		if o != nil {
			return o.Name
		}
	}
	return ""
}

// Owners returns a test for the nodes of another copy of the model, not expanded yet, whose expansions hold one of the
// given nodes: what to expand so that those nodes come to be.
func Owners(expansions []Expansion, nodes map[*graph.Node]bool) func(*graph.Node) bool {
	keys := map[string]bool{}
	inside := map[*graph.Node]bool{}
	for i := len(expansions) - 1; i >= 0; i-- {
		e := &expansions[i]
		if slices.ContainsFunc(e.Nodes, func(n *graph.Node) bool { return nodes[n] || inside[n] }) {
			keys[e.Key], inside[e.node] = true, true
		}
	}
	return func(n *graph.Node) bool { return keys[key(n)] }
}

// Fused returns the node of the file that a node of the expanded model stands for: the outermost operator or call whose
// expansion holds it, or itself.
func Fused(expansions []Expansion, n *graph.Node) *graph.Node {
	for i := len(expansions) - 1; i >= 0; i-- {
		if e := &expansions[i]; slices.Contains(e.Nodes, n) {
			n = e.node
		}
	}
	return n
}

// baseName is the scope of a node's expansion: its name, or that of its first output.
func baseName(n *graph.Node) string {
	if n.Name != "" {
		return strings.TrimSuffix(n.Name, "/")
	}
	return firstOutput(n)
}
