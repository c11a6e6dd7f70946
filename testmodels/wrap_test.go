package testmodels

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// open reads a message as a model.
func openMessage(t testing.TB, pb *onnxpb.ModelProto) *graph.Model {
	t.Helper()
	data, err := proto.Marshal(pb)
	if err != nil {
		t.Fatal(err)
	}
	m, err := graph.Read("message", data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func get(t testing.TB, name string) Family {
	t.Helper()
	f, err := Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func message(t testing.TB, f Family, o Options) *onnxpb.ModelProto {
	t.Helper()
	m, err := f.Message(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// flagged runs a merged model, whose flag the reference knows nothing of.
func flagged(t testing.TB, s *ort.Session, in map[string]Array, past bool) map[string]Array {
	t.Helper()
	feed := map[string]*ort.Tensor{"use_cache_branch": ort.From([]bool{past}, 1)}
	for name, v := range in {
		if v.I != nil {
			feed[name] = ort.FromInt64(v.I, int64s(v.Dims)...)
			continue
		}
		x, err := ort.FromFloat64s(onnxpb.TensorProto_FLOAT, v.F, int64s(v.Dims)...)
		if err != nil {
			t.Fatal(err)
		}
		feed[name] = x
	}
	out, err := s.Run(context.Background(), feed)
	if err != nil {
		t.Fatal(err)
	}
	arrays := map[string]Array{}
	for name, x := range out {
		data, err := x.Float64s()
		if err != nil {
			t.Fatal(err)
		}
		arrays[name] = Floats(data, each(x.Shape, func(d int64) int { return int(d) })...)
	}
	return arrays
}

func TestMergedAgreesWithReference(t *testing.T) {
	openRuntime(t)
	for _, name := range []string{"gpt2", "gpt2-matmul", "llama-gqa", "llama-dynamo"} {
		t.Run(name, func(t *testing.T) {
			f := get(t, name)
			merged := Merge(message(t, f, Options{Stage: First, Seed: 3}), message(t, f, Options{Stage: Next, Seed: 3}))
			s := session(t, openMessage(t, merged))
			r, err := f.Reference(Options{Cache: true, Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			for i, shape := range []Shape{{Batch: 2, Seq: 5}, {Batch: 2, Seq: 3, Past: 4, Pad: 1}} {
				in, err := f.Inputs(Options{Cache: true}, shape, uint64(i))
				if err != nil {
					t.Fatal(err)
				}
				want, err := r.Run(in)
				if err != nil {
					t.Fatal(err)
				}
				agree(t, flagged(t, s, in, shape.Past > 0), want, in["attention_mask"], tolerance)
			}
		})
	}
}

// The two stages of a decoder with cross attention, apart and merged, must add up to the whole sequence: the first step
// computes the keys and values of the encoder's states, the next one takes them.
func TestStagesOfCrossAttention(t *testing.T) {
	openRuntime(t)
	for _, name := range []string{"t5-decoder", "bart-decoder/torch", "whisper-decoder/torch", "whisper-decoder/simplified", "whisper-decoder/tf"} {
		t.Run(name, func(t *testing.T) { stages(t, get(t, name)) })
	}
}

func stages(t *testing.T, f Family) {
	whole := Options{Seed: 3}
	r, err := f.Reference(whole)
	if err != nil {
		t.Fatal(err)
	}
	const prefill, steps = 3, 4
	all, err := f.Inputs(whole, Shape{Batch: 2, Seq: prefill + steps, Pad: 1}, 5)
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.Run(all)
	if err != nil {
		t.Fatal(err)
	}
	first, next := message(t, f, Options{Stage: First, Seed: 3}), message(t, f, Options{Stage: Next, Seed: 3})
	merged := session(t, openMessage(t, Merge(first, next)))
	apart := map[bool]*ort.Session{false: session(t, openMessage(t, first)), true: session(t, openMessage(t, next))}
	for _, together := range []bool{false, true} {
		t.Run(fmt.Sprintf("merged=%v", together), func(t *testing.T) {
			step := maps.Clone(all)
			if together { // every input of the If has to be there
				for i := range 2 {
					past, _ := cacheNames(r.a, i)
					cross, _ := crossNames(i)
					for _, name := range slices.Concat(past[:], cross[:]) {
						step[name] = Floats(nil, 2, r.a.kvHeads, 0, r.a.headDim)
					}
				}
			}
			for from, to := 0, prefill; to <= prefill+steps; from, to = to, to+1 {
				step["input_ids"] = columns(all["input_ids"], from, to)
				var out map[string]Array
				if together {
					out = flagged(t, merged, step, from > 0)
				} else {
					in := maps.Clone(step)
					if from > 0 {
						delete(in, "encoder_hidden_states")
					}
					out = run(t, apart[from > 0], in)
				}
				logits := Array{Dims: []int{2, to - from, want["logits"].Dims[2]}}
				width := logits.Dims[2]
				for b := range 2 {
					at := b * (prefill + steps) * width
					logits.F = append(logits.F, want["logits"].F[at+from*width:at+to*width]...)
				}
				if d := distance(t, "logits", out["logits"], logits, Array{}); d > tolerance {
					t.Errorf("positions %d to %d: logits are %.3g from the whole sequence's, want at most %g", from, to, d, tolerance)
				}
				for name, v := range out {
					if rest, ok := strings.CutPrefix(name, "present."); ok && v.Len() > 0 {
						step["past_key_values."+rest] = v
					}
				}
			}
		})
	}
}

func TestLoopAgreesWithReference(t *testing.T) {
	openRuntime(t)
	for _, name := range []string{"gpt2", "llama-gqa"} {
		t.Run(name, func(t *testing.T) {
			f := get(t, name)
			o := Options{Cache: true, Seed: 3}
			s := session(t, openMessage(t, Loop(message(t, f, o))))
			r, err := f.Reference(o)
			if err != nil {
				t.Fatal(err)
			}
			for i, shape := range []Shape{{Batch: 2, Seq: 5}, {Batch: 3, Seq: 3, Past: 4, Pad: 1}} {
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

func TestScanAgreesWithReference(t *testing.T) {
	openRuntime(t)
	f := get(t, "bert")
	s := session(t, openMessage(t, Scan(message(t, f, Options{Seed: 3}))))
	r, err := f.Reference(Options{Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	stacked := map[string]Array{}
	var wants []map[string]Array
	for i := range 3 {
		in, err := f.Inputs(Options{}, Shape{Batch: 2, Seq: 5}, uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		want, err := r.Run(in)
		if err != nil {
			t.Fatal(err)
		}
		wants = append(wants, want)
		for name, v := range in {
			a := stacked[name]
			stacked[name] = Array{Dims: append([]int{i + 1}, v.Dims...), I: append(a.I, v.I...)}
		}
	}
	for name, v := range run(t, s, stacked) {
		n := v.Len() / 3
		for i, want := range wants {
			if d := distance(t, name, Floats(v.F[i*n:(i+1)*n], v.Dims[1:]...), want[name], Array{}); d > tolerance {
				t.Errorf("batch %d: %s is %.3g from the reference, want at most %g", i, name, d, tolerance)
			}
		}
	}
}

// The generation operators must choose the token that the reference finds most likely, or, where they draw or search,
// give sequences that begin with the prompt.
func TestSearchAgreesWithReference(t *testing.T) {
	openRuntime(t)
	const batch, prompt, length = 2, 4, 9
	f := get(t, "gpt2")
	o := Options{Cache: true, Seed: 3}
	ids, err := f.Inputs(Options{}, Shape{Batch: batch, Seq: prompt}, 1)
	if err != nil {
		t.Fatal(err)
	}
	tokens := ids["input_ids"]
	for i, id := range tokens.I {
		tokens.I[i] = max(id, 2) // neither padding nor the end
	}
	narrow := make([]int32, len(tokens.I))
	for i, id := range tokens.I {
		narrow[i] = int32(id)
	}
	r, err := f.Reference(Options{Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"GreedySearch", "Sampling", "BeamSearch"} {
		s := session(t, openMessage(t, Search(op, message(t, f, o))))
		feed := map[string]*ort.Tensor{"input_ids": ort.From(narrow, batch, prompt)}
		for name, n := range map[string]int32{"max_length": length, "min_length": 1, "num_beams": 3, "num_return_sequences": 2, "seed": 5} {
			if _, ok := s.Input(name); ok {
				feed[name] = ort.From([]int32{n}, 1)
			}
		}
		for _, name := range []string{"length_penalty", "repetition_penalty"} {
			if _, ok := s.Input(name); ok {
				feed[name] = ort.FromFloat32([]float32{1}, 1)
			}
		}
		out, err := s.Run(context.Background(), feed)
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		got, err := out["sequences"].Float64s()
		if err != nil {
			t.Fatal(err)
		}
		each := len(got) / batch
		for b := range batch {
			for i := range prompt {
				if int64(got[b*each+i]) != tokens.I[b*prompt+i] {
					t.Errorf("%s: sequence %d does not begin with the prompt: %v", op, b, got[b*each:(b+1)*each])
				}
			}
		}
		if op != "GreedySearch" {
			continue
		}
		for b := range batch {
			for n := prompt; n < length; n++ {
				row := Array{Dims: []int{1, n}}
				for _, x := range got[b*length : b*length+n] {
					row.I = append(row.I, int64(x))
				}
				in := map[string]Array{"input_ids": row, "attention_mask": mask(1, n, 0, true)}
				in["position_ids"] = positions(in["attention_mask"], 0)
				want, err := r.Run(in)
				if err != nil {
					t.Fatal(err)
				}
				last := want["logits"].F[(n-1)*64:]
				best := slices.Index(last, slices.Max(last))
				if best == 1 { // the end, after which there is padding
					best = 0
				}
				if int(got[b*length+n]) != best {
					t.Errorf("sequence %d, token %d is %v, the reference chooses %d", b, n, got[b*length+n], best)
				}
				if best == 0 {
					break
				}
			}
		}
	}
}
