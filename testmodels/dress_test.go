package testmodels

import (
	"fmt"
	"testing"
)

// Every architecture in every dress computes what the architecture says.
func TestDressedAgreeWithReference(t *testing.T) {
	openRuntime(t)
	for _, f := range Dressed() {
		for _, o := range []Options{{}, {Cache: true}, {Static: true, Cache: f.Decoder}} {
			if o.Cache && !f.Decoder {
				continue
			}
			t.Run(fmt.Sprintf("%s/cache=%v/static=%v", f.Name, o.Cache, o.Static), func(t *testing.T) {
				o.Seed = 7
				if f.Uniform { // and a past
					o.Batch = 1
				}
				m, err := f.Build(o)
				if err != nil {
					t.Fatal(err)
				}
				s := session(t, m)
				r, err := f.Reference(o)
				if err != nil {
					t.Fatal(err)
				}
				shapes := []Shape{{Batch: 2, Seq: 5, Past: 3}, {Batch: 3, Seq: 6, Past: 4, Pad: 2}, {Batch: 1, Seq: 1, Past: 6}}
				switch {
				case o.Static:
					shapes = []Shape{{}}
				case f.Uniform:
					shapes = []Shape{{Batch: 2, Seq: 6}, {Batch: 1, Seq: 3, Past: 5}, {Batch: 2, Seq: 1, Past: 6}}
				}
				for i, shape := range shapes {
					in, err := f.Inputs(o, shape, uint64(i))
					if err != nil {
						t.Fatal(err)
					}
					want, err := r.Run(in)
					if err != nil {
						t.Fatal(err)
					}
					agree(t, run(t, s, in), want, in["attention_mask"], tolerance)
				}
			})
		}
	}
}

// Windows and a cap change what the architecture computes, so a dress that forgets one would not agree.
func TestVariantsMatter(t *testing.T) {
	for _, name := range []string{"mistral/simplified", "gemma/simplified", "swin"} {
		f, err := Get(name)
		if err != nil {
			t.Fatal(err)
		}
		in, err := f.Inputs(Options{}, Shape{Batch: 1, Seq: 8}, 1)
		if err != nil {
			t.Fatal(err)
		}
		r, err := f.Reference(Options{})
		if err != nil {
			t.Fatal(err)
		}
		with, err := r.Run(in)
		if err != nil {
			t.Fatal(err)
		}
		r.a.window, r.a.softcap, r.a.windows = 0, 0, 0
		without, err := r.Run(in)
		if err != nil {
			t.Fatal(err)
		}
		if d := distance(t, name, with["logits"], without["logits"], Array{}); d < 1e-3 {
			t.Errorf("%s differs from the plain architecture by %g only", name, d)
		}
	}
}
