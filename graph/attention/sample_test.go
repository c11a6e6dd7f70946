package attention

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// plain is a wire with every element written out: the naive form of a sample.
type plain struct {
	shape []int
	data  []int32
}

func (p plain) at(idx []int) int32 {
	off := 0
	for a, n := range p.shape {
		off = off*n + idx[a]
	}
	return p.data[off]
}

func (p plain) transpose(perm []int) plain {
	out := plain{shape: make([]int, len(perm))}
	for i, a := range perm {
		out.shape[i] = p.shape[a]
	}
	src := make([]int, len(perm))
	out.data = gatherAll(out.shape, func(idx []int) int32 {
		for i, a := range perm {
			src[a] = idx[i]
		}
		return p.at(src)
	})
	return out
}

func (p plain) pick(axis int, idx []int) plain {
	out := plain{shape: slices.Clone(p.shape)}
	out.shape[axis] = len(idx)
	out.data = gatherAll(out.shape, func(i []int) int32 {
		src := slices.Clone(i)
		src[axis] = idx[i[axis]]
		return p.at(src)
	})
	return out
}

// gatherAll builds an array of the given shape element by element.
func gatherAll(shape []int, at func(idx []int) int32) []int32 {
	out := make([]int32, product(shape))
	idx := make([]int, len(shape))
	for o := range out {
		out[o] = at(idx)
		for a := len(idx) - 1; a >= 0; a-- {
			if idx[a]++; idx[a] < shape[a] {
				break
			}
			idx[a] = 0
		}
	}
	return out
}

// spelled writes a sample out.
func spelled(s *sample) plain {
	return plain{s.shape, gatherAll(s.shape, func(idx []int) int32 {
		off := 0
		for a, n := range s.stored {
			off *= n
			if n > 1 {
				off += idx[a]
			}
		}
		return s.data[off]
	})}
}

// Every way of moving labels gives the same elements as moving them one by one, whatever is stored once.
func TestSampleMovesLikePlainArrays(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		rank := 1 + rng.IntN(4)
		s := &sample{scale: 1}
		for range rank {
			n := 1 + rng.IntN(4)
			s.shape = append(s.shape, n)
			s.stored = append(s.stored, []int{1, n}[rng.IntN(2)])
		}
		for range product(s.stored) {
			s.data = append(s.data, rng.Int32N(5))
		}
		want := spelled(s)
		for range 6 {
			switch rng.IntN(6) {
			case 0:
				perm := rng.Perm(len(s.shape))
				got, err := s.transpose(perm)
				if err != nil {
					t.Fatal(err)
				}
				s, want = got, want.transpose(perm)
			case 1:
				shape := refactor(rng, s.shape)
				got, err := s.reshape(shape)
				if err != nil {
					t.Fatalf("reshape %v to %v: %v", s.shape, shape, err)
				}
				s, want = got, plain{shape, want.data}
			case 2:
				axis := rng.IntN(len(s.shape))
				idx := make([]int, 1+rng.IntN(3))
				for i := range idx {
					idx[i] = rng.IntN(s.shape[axis])
				}
				s, want = s.pick(axis, idx), want.pick(axis, idx)
			case 3:
				axis := rng.IntN(len(s.shape) + 1)
				s = s.insert(axis)
				want.shape = slices.Insert(slices.Clone(want.shape), axis, 1)
			case 4:
				s = s.compact()
			case 5:
				s = s.full(rng.IntN(len(s.shape)))
			}
			got := spelled(s)
			if !slices.Equal(got.shape, want.shape) || !slices.Equal(got.data, want.data) {
				t.Fatalf("got %v %v, want %v %v", got.shape, got.data, want.shape, want.data)
			}
			if product(s.stored) != len(s.data) {
				t.Fatalf("stored %v with %d elements", s.stored, len(s.data))
			}
			if product(s.shape) > 500 {
				break
			}
		}
	}
}

// refactor returns another shape with the same number of elements.
func refactor(rng *rand.Rand, shape []int) []int {
	var primes []int
	for n := product(shape); n > 1; {
		for p := 2; p <= n; p++ {
			if n%p == 0 {
				primes = append(primes, p)
				n /= p
				break
			}
		}
	}
	rng.Shuffle(len(primes), func(i, j int) { primes[i], primes[j] = primes[j], primes[i] })
	out := make([]int, 1+rng.IntN(4))
	for i := range out {
		out[i] = 1
	}
	for _, p := range primes {
		out[rng.IntN(len(out))] *= p
	}
	return out
}

func TestSampleRejectsWhatDoesNotFit(t *testing.T) {
	s := &sample{shape: []int{2, 6}, stored: []int{1, 6}, data: []int32{1, 2, 3, 4, 5, 6}}
	for _, shape := range [][]int{{5}, {3, 5}, {}, {12, 2}} {
		if _, err := s.reshape(shape); err == nil {
			t.Errorf("reshape of [2 6] to %v is accepted", shape)
		}
	}
	for _, perm := range [][]int{{0}, {0, 0}, {0, 2}, {-1, 0}} {
		if _, err := s.transpose(perm); err == nil {
			t.Errorf("transpose by %v is accepted", perm)
		}
	}
}

func TestLabelsAreSets(t *testing.T) {
	l := newLabels(8)
	rng := rand.New(rand.NewPCG(3, 4))
	ids := []int32{0, 1, 2, 3, 4, 5, 6, 7, 8}
	for range 300 {
		a, b := ids[rng.IntN(len(ids))], ids[rng.IntN(len(ids))]
		u := l.union(a, b)
		want := slices.Concat(l.set(a), l.set(b))
		slices.Sort(want)
		want = slices.Compact(want)
		if !slices.Equal(l.set(u), want) {
			t.Fatalf("%v ∪ %v = %v, want %v", l.set(a), l.set(b), l.set(u), want)
		}
		if l.union(b, a) != u || l.union(u, a) != u {
			t.Fatalf("the union of %v and %v is not one label", l.set(a), l.set(b))
		}
		ids = append(ids, u)
	}
}
