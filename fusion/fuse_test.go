package fusion

import (
	"reflect"
	"testing"
)

func TestHelpers(t *testing.T) {
	for _, tc := range []struct {
		name string
		f    Fusion
		want Fusion
		of   []int // the group of each head
		same bool
	}{
		{"identity", Identity(3), Fusion{[][]int{{0}, {1}, {2}}, [][]float64{{1}, {1}, {1}}}, []int{0, 1, 2}, true},
		{"adjacent pairs", Adjacent(4, 2), Fusion{[][]int{{0, 1}, {2, 3}}, [][]float64{{0.5, 0.5}, {0.5, 0.5}}}, []int{0, 0, 1, 1}, false},
		{"all in one", Adjacent(4, 1), Fusion{[][]int{{0, 1, 2, 3}}, [][]float64{{0.25, 0.25, 0.25, 0.25}}}, []int{0, 0, 0, 0}, false},
		{"unequal mean", Mean([][]int{{3}, {0, 2, 1, 4}}), Fusion{[][]int{{3}, {0, 2, 1, 4}}, [][]float64{{1}, {0.25, 0.25, 0.25, 0.25}}}, []int{1, 1, 1, 0, 1}, false},
		{"another order", Mean([][]int{{1}, {0}}), Fusion{[][]int{{1}, {0}}, [][]float64{{1}, {1}}}, []int{1, 0}, false},
	} {
		if !reflect.DeepEqual(tc.f, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, tc.f, tc.want)
		}
		if got := tc.f.Map(); !reflect.DeepEqual(got, tc.of) || tc.f.Heads() != len(tc.want.Groups) {
			t.Errorf("%s: heads go to groups %v of %d, want %v of %d", tc.name, got, tc.f.Heads(), tc.of, len(tc.want.Groups))
		}
		if tc.f.IsIdentity() != tc.same {
			t.Errorf("%s: identity %v, want %v", tc.name, !tc.same, tc.same)
		}
	}
}
