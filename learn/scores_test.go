package learn

import (
	"context"
	"fmt"
	"math"
	"testing"

	"onnx-dha/data"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/testmodels"
)

// The statistics of scores are those of the definition in fusion.Stats: Scores taken with the same random signs, Outputs
// with the same directions, from the operands of the block's products.
func TestScoreStatistics(t *testing.T) {
	runtime(t)
	for _, tc := range []struct {
		family string
		o      testmodels.Options
		pad    int
	}{
		{"llama", testmodels.Options{}, 0},
		{"llama", testmodels.Options{Cache: true}, 3},
		{"llama-gqa", testmodels.Options{Cache: true, Bias: true}, 2},
		{"llama-interleaved", testmodels.Options{}, 0},
		{"qwen2", testmodels.Options{}, 1},
	} {
		t.Run(fmt.Sprint(tc.family, tc.o.Cache, tc.pad), func(t *testing.T) {
			l, f := familyLab(t, tc.family, tc.o)
			var samples []data.Sample
			for seed := range uint64(3) {
				samples = append(samples, familySample(t, f, tc.o, 2, 9, tc.pad, seed))
			}
			batches, err := l.Batches(samples, 1)
			if err != nil {
				t.Fatal(err)
			}
			last := len(l.Blocks) - 1
			k, err := l.calibration(0, 9, last)
			if err != nil {
				t.Fatal(err)
			}
			defer k.close()
			got, err := k.collect(context.Background(), batches, 1, nil, func() {})
			if err != nil {
				t.Fatal(err)
			}
			w, lay := l.Weights[last], k.layouts[0]
			if lay.scores == 0 || len(got[0].Scores) != w.Heads || len(got[0].Outputs) != w.Heads {
				t.Fatalf("stride %d, %d score and %d output statistics for %d heads", lay.scores, len(got[0].Scores), len(got[0].Outputs), w.Heads)
			}
			inside := tapped(t, l, batches, func(_ *graph.Graph, blocks []*attention.Block) []*graph.Value {
				b := blocks[last]
				return []*graph.Value{b.QK.In[0], b.QK.In[1], b.PV.In[0], b.PV.In[1]}
			})
			n, d, dv := w.KVHeads*w.HeadDim, w.HeadDim, w.ValueDim
			scores, outputs := make([][]float64, w.Heads), make([][]float64, w.Heads)
			for h := range w.Heads {
				scores[h], outputs[h] = make([]float64, n*n), make([]float64, n*n)
			}
			partner := partners(l.Blocks[last].Rotary.Kind, d)
			rows := 0.0
			for i, batch := range batches {
				q, _ := inside[i][0].Float64s()
				kt, _ := inside[i][1].Float64s()
				p, _ := inside[i][2].Float64s()
				v, _ := inside[i][3].Float64s()
				T := int(inside[i][1].Shape[len(inside[i][1].Shape)-1])
				B := int(inside[i][0].Len()) / (w.Heads * T * d)
				cached := int(inside[i][1].Len()) / (B * d * T) // heads as the product reads them, repeated or not
				vCached := int(inside[i][3].Len()) / (B * dv * T)
				extra := sketches(lay, w, i, T)
				signs, _ := extra[signsInput].Float64s()
				sketch, _ := extra[sketchInput(dv)].Float64s()
				sets, columns := signColumns, len(sketch)/dv
				for e := range B {
					for s := int(firstRow(i, lay.scores, batch.Length)); s < T; s += lay.scores {
						if m := batch.Feeds["attention_mask"]; m != nil {
							if x, _ := m.Int64s(); x[e*T+s] == 0 {
								continue
							}
						}
						rows++
						for h := range w.Heads {
							prob := func(j int) float64 { return p[((e*w.Heads+h)*T+s)*T+j] }
							phi := make([][]float64, T)
							mean := make([]float64, n)
							vo := make([][]float64, T)
							roots := outputRoots(w)[h*dv*dv : (h+1)*dv*dv]
							for j := range T {
								phi[j] = make([]float64, n)
								vo[j] = make([]float64, columns)
								if prob(j) == 0 {
									continue
								}
								for m := range w.KVHeads {
									key := func(c int) float64 {
										return kt[((e*cached+m*cached/w.KVHeads)*d+c)*T+j]
									}
									query := func(c int) float64 { return q[((e*w.Heads+h)*T+s)*d+c] }
									for a := range d {
										b := int(partner[a])
										if a < b {
											phi[j][m*d+a] = query(a)*key(a) + query(b)*key(b)
										} else {
											phi[j][m*d+a] = query(a)*key(b) - query(b)*key(a)
										}
										mean[m*d+a] += prob(j) * phi[j][m*d+a]
									}
								}
								for c := range columns {
									for x := range dv {
										value := v[((e*vCached+w.ValueOf[h]*vCached/w.ValueHeads)*T+j)*dv+x]
										for y := range dv {
											vo[j][c] += value * float64(roots[x*dv+y]) * sketch[c*dv+y]
										}
									}
								}
							}
							add := func(to []float64, row []float64) {
								for a := range n {
									for b := range n {
										to[a*n+b] += row[a] * row[b]
									}
								}
							}
							for c := range columns {
								row := make([]float64, n)
								for j := range T {
									for a := range n {
										row[a] += prob(j) * (phi[j][a] - mean[a]) * vo[j][c]
									}
								}
								add(outputs[h], row)
							}
							for c := range sets {
								row := make([]float64, n)
								for j := range T {
									for a := range n {
										row[a] += math.Sqrt(prob(j)) * (phi[j][a] - mean[a]) * signs[c*T+j]
									}
								}
								add(scores[h], row)
							}
						}
					}
				}
			}
			for h := range w.Heads {
				for a := range n * n {
					scores[h][a] /= rows
					outputs[h][a] /= rows
				}
				same(t, fmt.Sprintf("scores %d", h), got[0].Scores[h].RawSymmetric().Data, scores[h], n)
				same(t, fmt.Sprintf("outputs %d", h), got[0].Outputs[h].RawSymmetric().Data, outputs[h], n)
			}
		})
	}
}

// partners gives the channel that each is turned with.
func partners(kind attention.RotaryKind, d int) []int64 {
	out := make([]int64, d)
	for c := range out {
		if kind == attention.Interleaved {
			out[c] = int64(c ^ 1)
		} else {
			out[c] = int64((c + d/2) % d)
		}
	}
	return out
}
