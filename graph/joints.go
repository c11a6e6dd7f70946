package graph

// A Joint is one tensor that has several names on its way across the boundary of a node's bodies: what the node takes
// in, what its bodies call it, what they give back, and what comes out. The cache of a decoder is such a tensor: an
// input of a Loop's body that the next iteration gets from an output of it.
type Joint struct {
	Node    *Node
	Initial *Value // what the node takes in, its input Input; nil when nothing
	Input   int
	Inputs  []*Value // of bodies
	Results []*Value // outputs of bodies; one that is a value of a graph around the body is listed too
	Out     *Value   // output of the node; nil when nobody reads it
}

// Values lists all names of the tensor.
func (j *Joint) Values() []*Value {
	var out []*Value
	for _, list := range [][]*Value{{j.Initial}, j.Inputs, j.Results, {j.Out}} {
		for _, v := range list {
			if v != nil {
				out = append(out, v)
			}
		}
	}
	return out
}

// Joints lists the tensors that cross the boundaries of n's bodies whole. What a Loop or Scan collects over its
// iterations, or cuts into pieces for them, is none of them: it has another rank inside.
func (n *Node) Joints() []*Joint {
	rule := jointRules[opKey{canonicalDomain(n.Domain), n.OpType}]
	if rule == nil {
		return nil
	}
	return rule(n)
}

// jointRules is the table of operators with bodies that tensors cross.
var jointRules = map[opKey]func(*Node) []*Joint{
	{"", "If"}:                             branchJoints,
	{"", "Loop"}:                           loopJoints,
	{"", "Scan"}:                           scanJoints,
	{"com.microsoft", "GreedySearch"}:      searchJoints,
	{"com.microsoft", "Sampling"}:          searchJoints,
	{"com.microsoft", "BeamSearch"}:        searchJoints,
	{"com.microsoft", "WhisperBeamSearch"}: searchJoints,
}

// branchJoints: output i of an If is output i of either branch.
func branchJoints(n *Node) []*Joint {
	var out []*Joint
	for i := range n.Out {
		j := &Joint{Node: n, Out: n.Out[i]}
		for _, b := range n.bodies() {
			j.Results = append(j.Results, present(nth(b.Outputs, i))...)
		}
		out = append(out, j)
	}
	return out
}

// loopJoints: the values that a Loop carries. Its inputs are a count, a condition and they, its body's inputs an
// iteration number, a condition and they, and its body's outputs a condition, they, and what is collected.
func loopJoints(n *Node) []*Joint {
	var out []*Joint
	for _, b := range n.bodies() {
		for i := range max(len(n.In)-2, 0) {
			out = append(out, &Joint{
				Node: n, Initial: nth(n.In, 2+i), Input: 2 + i, Inputs: present(nth(b.Inputs, 2+i)), Results: present(nth(b.Outputs, 1+i)), Out: nth(n.Out, i),
			})
		}
	}
	return out
}

// scanJoints: the states of a Scan come first everywhere.
func scanJoints(n *Node) []*Joint {
	var out []*Joint
	states := len(n.In) - int(n.Int("num_scan_inputs", 0))
	if n.Graph.Model.Opset("") < 9 { // everything has a batch dimension more
		return nil
	}
	for _, b := range n.bodies() {
		for i := range max(states, 0) {
			out = append(out, &Joint{
				Node: n, Initial: nth(n.In, i), Input: i, Inputs: present(nth(b.Inputs, i)), Results: present(nth(b.Outputs, i)), Out: nth(n.Out, i),
			})
		}
	}
	return out
}

// nth returns list[i], nil beyond its end.
func nth(list []*Value, i int) *Value {
	if i < 0 || i >= len(list) {
		return nil
	}
	return list[i]
}

func present(v *Value) []*Value {
	if v == nil {
		return nil
	}
	return []*Value{v}
}
