package rewrite

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
)

// revision is a version of an ai.onnx operator from which a node of an older one means something else, or is not valid.
// convert brings a node into the new form and may refuse; it is first called with a nil patch, to ask. A revision without
// convert cannot be crossed.
type revision struct {
	since   int64
	convert func(p *graph.Patch, f *graph.Facts, n *graph.Node) error
}

// revisions lists them up to opset 23, from the operators' version histories in the ONNX specification (Changelog.md).
// Operators that are not listed only gained types, attributes with a neutral default or optional inputs.
var revisions = map[string][]revision{}

func init() {
	for _, op := range []string{"Squeeze", "Unsqueeze", "ReduceSum"} {
		revisions[op] = []revision{{13, axesToInput}}
	}
	for _, op := range []string{"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"} {
		revisions[op] = []revision{{18, axesToInput}}
	}
	for _, op := range []string{"Softmax", "LogSoftmax", "Hardmax"} {
		revisions[op] = []revision{{13, lastAxisOnly}}
	}
	revisions["Split"] = []revision{{13, attrToInput("split")}, {18, countOutputs}}
	revisions["Dropout"] = []revision{{12, dropAttr("ratio")}}
	revisions["BatchNormalization"] = []revision{{14, oneOutput}}
	// What these changed needs values that are known at run time, or has no equivalent.
	for op, since := range map[string]int64{
		"Slice": 10, "TopK": 11, "Upsample": 10, "Resize": 11, "Clip": 11, "Pad": 11, "Scatter": 11, "OneHot": 11, "CumSum": 11, "RoiAlign": 16,
		"GroupNormalization": 21, "DFT": 20, "GridSample": 20,
	} {
		revisions[op] = []revision{{since, nil}}
	}
}

// upgradable says why a model cannot import a newer opset of ai.onnx, nil when it can.
func upgradable(m *graph.Model, to int64) error {
	if len(m.Proto.Functions) > 0 {
		return fmt.Errorf("the model has functions of its own, which import an opset too")
	}
	return eachRevision(m, to, nil)
}

// eachRevision converts the nodes of a model in p, or asks whether it could be done where p is nil.
func eachRevision(m *graph.Model, to int64, p *graph.Patch) (err error) {
	from := m.Opset("")
	var f *graph.Facts
	m.Graph.All(func(n *graph.Node) bool {
		if !n.Is(n.OpType) {
			return true
		}
		for _, r := range revisions[n.OpType] {
			if r.since <= from || r.since > to {
				continue
			}
			if r.convert == nil {
				err = fmt.Errorf("%v means something else from opset %d on", n, r.since)
				return false
			}
			if f == nil {
				f = graph.Infer(m.Graph)
			}
			if e := r.convert(p, f, n); e != nil {
				err = fmt.Errorf("%v, which changed in opset %d: %w", n, r.since, e)
				return false
			}
		}
		return true
	})
	return err
}

// upgradeTo makes a model import a newer opset of ai.onnx. It must be upgradable.
func upgradeTo(m *graph.Model, to int64) error {
	p := graph.NewPatch(m.Graph)
	if err := eachRevision(m, to, p); err != nil {
		return err
	}
	for _, o := range m.Proto.OpsetImport {
		if o.GetDomain() == "" || o.GetDomain() == "ai.onnx" {
			o.Version = proto.Int64(to)
		}
	}
	// Opset 23 came with IR version 11 (the specification's table of releases).
	if m.Proto.GetIrVersion() < 11 {
		m.Proto.IrVersion = proto.Int64(11)
	}
	_, err := p.Apply()
	return err
}

func axesToInput(p *graph.Patch, f *graph.Facts, n *graph.Node) error {
	return attrToInput("axes")(p, f, n)
}

// attrToInput moves a list from an attribute to input 1.
func attrToInput(attr string) func(*graph.Patch, *graph.Facts, *graph.Node) error {
	return func(p *graph.Patch, _ *graph.Facts, n *graph.Node) error {
		x, ok := n.Ints(attr)
		if !ok || p == nil {
			return nil
		}
		p.RemoveAttr(n, attr)
		p.SetInput(n, 1, p.Ints(n.Name+"/"+attr, x...))
		return nil
	}
}

// countOutputs gives a Split into equal parts their number.
func countOutputs(p *graph.Patch, _ *graph.Facts, n *graph.Node) error {
	if _, sizes := n.Ints("split"); p != nil && !sizes && n.Input(1) == nil && n.Attr("num_outputs") == nil {
		p.SetAttr(n, graph.IntAttr("num_outputs", int64(len(n.Out))))
	}
	return nil
}

// lastAxisOnly lets a softmax over the last axis be; one over several axes at once is no longer to be had.
func lastAxisOnly(p *graph.Patch, f *graph.Facts, n *graph.Node) error {
	shape, ok := f.Shape(n.In[0])
	if axis := n.Int("axis", 1); !ok || axis != -1 && axis != int64(len(shape))-1 {
		return fmt.Errorf("it is not over the last axis alone")
	}
	if p != nil {
		p.SetAttr(n, graph.IntAttr("axis", -1))
	}
	return nil
}

func dropAttr(name string) func(*graph.Patch, *graph.Facts, *graph.Node) error {
	return func(p *graph.Patch, _ *graph.Facts, n *graph.Node) error {
		if p != nil {
			p.RemoveAttr(n, name)
		}
		return nil
	}
}

func oneOutput(_ *graph.Patch, _ *graph.Facts, n *graph.Node) error {
	if len(n.Out) > 1 {
		return fmt.Errorf("it gives more than its first output")
	}
	return nil
}
