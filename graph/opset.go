package graph

import "fmt"

// MaxOpset is the newest ai.onnx opset whose operators this program knows.
const MaxOpset = 27

// CheckOpset reports operators of ai.onnx whose meaning is not known: an opset that is newer than MaxOpset, or none.
func (m *Model) CheckOpset() error {
	switch v := m.Opset(""); {
	case v > MaxOpset:
		return fmt.Errorf("it imports opset %d of ai.onnx; this program knows opsets up to %d", v, MaxOpset)
	case v < 1:
		for _, n := range m.Graph.Nodes {
			if canonicalDomain(n.Domain) == "" {
				return fmt.Errorf("it imports no opset of ai.onnx, but %v is an operator of ai.onnx", n)
			}
		}
	}
	return nil
}
