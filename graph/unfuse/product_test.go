package unfuse_test

import (
	"strings"
	"testing"

	"onnx-dha/graph"
)

func TestFusedMatMul(t *testing.T) {
	for name, a := range map[string]attrs{
		"alpha":  {graph.FloatAttr("alpha", 0.125)},
		"transA": {graph.IntAttr("transA", 1)},
		"transB": {graph.IntAttr("transB", 1)},
		"all":    {graph.IntAttr("transA", 1), graph.IntAttr("transB", 1), graph.FloatAttr("alpha", 3)},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, contribOpsets, func(s *sketch) {
				s.node("FusedMatMul", "com.microsoft", 1, []*graph.Value{s.in("a", "B=2", 3, 4, 4), s.in("b", "B=2", 3, 4, 4)}, a...)
				s.exact(1e-5)
			})
			each(t, contribOpsets, func(s *sketch) {
				s.node("FusedMatMul", "com.microsoft", 1, []*graph.Value{s.in("a", "B=2", 4, 4), s.constant("b", 4, 4)}, a...)
				s.exact(1e-5)
			})
		})
	}
}

func TestEinsum(t *testing.T) {
	size := map[rune]any{'a': "A=2", 'b': "B=3", 'c': 4, 'd': 5, 'e': "E=6"}
	for _, equation := range []string{
		"abc,dc->abd", "aecd,abcd->acbe", "acbe,aecd->abcd", "abc, acd -> abd", "abcd,aecd->acbe", "bc,cd->db", "abec,adc->abed", "ac,bec->bea",
	} {
		t.Run(equation, func(t *testing.T) {
			each(t, []int64{12, 13, 17}, func(s *sketch) {
				left, _, _ := strings.Cut(strings.ReplaceAll(equation, " ", ""), "->")
				terms := strings.Split(left, ",")
				var in []*graph.Value
				for i, term := range terms {
					var dims []any
					for _, l := range term {
						dims = append(dims, size[l])
					}
					in = append(in, s.in([]string{"x", "y"}[i], dims...))
				}
				s.node("Einsum", "", 1, in, graph.StringAttr("equation", equation))
				s.exact(1e-5)
			})
		})
	}
	for _, equation := range []string{
		"abc,cde->abde", "abc,dce->abde", "abc,dec->adbe", "abcd,cde->abe", "abcd,dce->abe", "abc,cd->abd", "acdb,ecd->abe",
	} {
		t.Run("constant "+equation, func(t *testing.T) {
			each(t, []int64{12, 13, 17}, func(s *sketch) {
				terms := strings.Split(strings.Split(equation, "->")[0], ",")
				number := map[rune]int64{'c': 4, 'd': 5, 'e': 6}
				var dims []any
				for _, l := range terms[0] {
					if n, ok := number[l]; ok {
						dims = append(dims, int(n))
						continue
					}
					dims = append(dims, size[l])
				}
				var w []int64
				for _, l := range terms[1] {
					w = append(w, number[l])
				}
				s.node("Einsum", "", 1, []*graph.Value{s.in("x", dims...), s.constant("w", w...)}, graph.StringAttr("equation", equation))
				s.exact(1e-5)
				m := s.expanded()
				for _, n := range m.Graph.Nodes {
					if n.OpType == "MatMul" && (n.In[1].Const() == nil || len(n.In[1].Const().Dims()) != 2) {
						t.Errorf("%v does not multiply by a constant matrix", n)
					}
				}
			})
		})
	}
}

func TestStackedWeight(t *testing.T) {
	each(t, contribOpsets, func(s *sketch) {
		s.node("MatMul", "", 1, []*graph.Value{s.in("x", "B=2", 1, "S=3", 4), s.constant("w", 3, 4, 5)})
		s.exact(1e-5)
	})
	each(t, contribOpsets, func(s *sketch) {
		s.node("MatMul", "", 1, []*graph.Value{s.in("x", "B=2", "S=3", 4), s.constant("w", 1, 4, 5)})
		s.exact(1e-5)
	})
}
