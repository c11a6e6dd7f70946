package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/verify"
)

// modelPair is an original and a rewritten model with the configuration between them.
type modelPair struct {
	original, rewritten string
	beside              []string       // the models that the original passes caches to, or takes them from
	config              *fusion.Config // nil when none is known; then only drift is measured
	form                rewrite.Form   // that the rewritten model was lowered to
	tied                *verify.Copy   // the tied reference; nil without one
	caches              []rewrite.CacheChange
	blocks              []verify.BlockSummary
	taps                []verify.Tap
	signature           *verify.Signature // of the original
	fingerprint         string
	notes               []string
}

// openPair reads both models and the configuration of the second, and checks that they belong together.
func openPair(c *cli.Context, original, rewritten string) (*modelPair, error) {
	p := &modelPair{original: original, rewritten: rewritten, beside: c.StringSlice("with")}
	small, err := loadModel(rewritten)
	if err != nil {
		return nil, err
	}
	defer small.Close()
	p.form = rewrite.RecordedForm(small)
	recorded, _ := small.Metadata(rewrite.MetadataConfig)
	hash, _ := small.Metadata(rewrite.MetadataHash)
	switch {
	case c.IsSet("config"):
		if p.config, err = fusion.Load(c.String("config")); err != nil {
			return nil, coded(exitUsage, fmt.Errorf("configuration: %w", err))
		}
		if h := p.config.Hash(); hash != "" && hash != h {
			return nil, usageError("%s was rewritten with another configuration: it records %s, %s has %s", rewritten, short(hash), c.String("config"), short(h))
		}
	case recorded != "":
		if p.config, err = fusion.Parse(rewritten+" (recorded configuration)", []byte(recorded)); err != nil {
			return nil, err
		}
		if p.config.Weights != "" && !p.findWeights() {
			p.notes = append(p.notes, fmt.Sprintf("%s was rewritten with learned weights, and %s is neither beside it nor beside the original: only drift was measured; --config names their configuration", filepath.Base(rewritten), p.config.Weights))
			p.config = nil
		}
	default:
		p.notes = append(p.notes, fmt.Sprintf("%s records no configuration and --config gives none: only drift was measured", filepath.Base(rewritten)))
	}
	src, err := openBeside(original, p.beside)
	if err != nil {
		return nil, err
	}
	defer src.close()
	big, found := src.m, src.found
	if p.signature, err = sameInputs(big, small); err != nil {
		return nil, err
	}
	p.taps = verify.Taps(found.Blocks)
	if len(found.Blocks) > 0 {
		if p.fingerprint, err = fusion.Fingerprint(found.Blocks); err != nil {
			return nil, coded(exitModel, err)
		}
	}
	if p.config == nil {
		return p, nil
	}
	if err := src.set.needBlocks(); err != nil {
		return nil, err
	}
	if !c.Bool("force") {
		if err := p.config.CheckModel(src.set.blocks()); err != nil {
			return nil, forceable(err)
		}
	}
	_, err = p.config.Resolve(src.set.blocks())
	return p, err
}

// findWeights looks for the learned tensors of a recorded configuration, which does not know where it lay: beside the
// rewritten model, then beside the original.
func (p *modelPair) findWeights() bool {
	for _, model := range []string{p.rewritten, p.original} {
		p.config.Dir = filepath.Dir(model)
		if _, err := os.Stat(filepath.Join(p.config.Dir, p.config.Weights)); err == nil {
			return true
		}
	}
	return false
}

func short(hash string) string { return hash[:min(12, len(hash))] }

// sameInputs refuses two models that no input fits both of, and returns the signature of the original. Buffers for caches
// bring an input of their own, the places to write to.
func sameInputs(original, rewritten *graph.Model) (*verify.Signature, error) {
	var signatures [2]*verify.Signature
	var names [2][]string
	for i, m := range []*graph.Model{original, rewritten} {
		s, err := verify.Describe(m)
		if err != nil {
			return nil, coded(exitModel, fmt.Errorf("%s: %w", m.Path, err))
		}
		signatures[i] = s
		for _, in := range s.Inputs {
			if in.Role != verify.Places {
				names[i] = append(names[i], in.Name)
			}
		}
		slices.Sort(names[i])
	}
	if slices.Equal(names[0], names[1]) {
		return signatures[0], swapped(original, rewritten, signatures)
	}
	var differ []string
	for _, side := range []struct {
		what         string
		names, known []string
	}{{"it has no input %s", names[0], names[1]}, {"the original has no input %s", names[1], names[0]}} {
		only := slices.DeleteFunc(slices.Clone(side.names), func(name string) bool { return slices.Contains(side.known, name) })
		if n := len(only); n > maxNamed {
			only = append(only[:maxNamed], fmt.Sprintf("and %d more", n-maxNamed))
		}
		if len(only) > 0 {
			differ = append(differ, fmt.Sprintf(side.what, strings.Join(only, ", ")))
		}
	}
	return nil, usageError("%s is no rewrite of %s: %s", rewritten.Path, original.Path, strings.Join(differ, ", and "))
}

// maxNamed bounds the inputs that an error lists.
const maxNamed = 4

// swapped is the error of two models in the wrong order: the first was rewritten, the second was not and takes larger
// caches. Other programs drop the record of a rewrite, so that it is missing alone says nothing.
func swapped(first, second *graph.Model, s [2]*verify.Signature) error {
	_, before := first.Metadata(rewrite.MetadataVersion)
	_, after := second.Metadata(rewrite.MetadataVersion)
	if !before || after {
		return nil
	}
	small := map[string][]graph.Dim{}
	for _, in := range s[0].Inputs {
		small[in.Name] = in.Dims
	}
	for _, in := range s[1].Inputs {
		for i, d := range small[in.Name] {
			if in.Role != verify.PastCache || i >= len(in.Dims) {
				continue
			}
			n, known := d.Const()
			if m, ok := in.Dims[i].Const(); ok && known && n < m {
				return usageError("%s was rewritten and %s was not: the original comes first", first.Path, second.Path)
			}
		}
	}
	return nil
}

// tolerance is a configuration's with those of the command line over it, nil when neither says anything.
func tolerance(c *cli.Context, config *fusion.Config) *verify.Tolerance {
	limits := fusion.Limits{}
	given := false
	if config != nil && config.Verify != nil {
		given = true
		for name, bound := range config.Verify {
			limits[name] = bound
		}
	}
	for _, m := range fusion.Metrics {
		if c.IsSet(metricFlag(m.Name)) {
			given = true
			limits[m.Name] = c.Float64(metricFlag(m.Name))
		}
	}
	if !given {
		return nil
	}
	t := &verify.Tolerance{Name: verify.DefaultDrift().Name}
	for _, m := range fusion.Metrics {
		if bound, ok := limits[m.Name]; ok {
			t.Limits = append(t.Limits, verify.Limit{Metric: m.Name, Bound: bound})
		}
	}
	return t
}

// tie writes the tied reference where the runtime can read it, and notes what the rewrite changes.
func (p *modelPair) tie() error {
	if p.config == nil {
		return nil
	}
	return p.planned(p.config, func(src *source, plan *fusion.Plan) error {
		if err := p.reference(src, plan); err != nil {
			return err
		}
		return p.planned(p.config, func(src *source, plan *fusion.Plan) error {
			res, err := rewrite.Apply(src.m, plan)
			if err != nil {
				return coded(exitModel, fmt.Errorf("%s: %w", p.original, err))
			}
			p.caches, p.blocks = res.Caches, summarize(plan, res)
			return nil
		})
	})
}

// planned opens the original with the plan of a configuration for it, in the form of the rewritten model.
func (p *modelPair) planned(config *fusion.Config, f func(*source, *fusion.Plan) error) error {
	src, err := openBeside(p.original, p.beside)
	if err != nil {
		return err
	}
	defer func() { src.close() }()
	var plan *fusion.Plan
	if src, plan, err = src.planned(config); err != nil {
		return err
	}
	p.form.Of(plan)
	return f(src, plan)
}

// summarize says for a report what a rewrite changed.
func summarize(plan *fusion.Plan, res *rewrite.Result) []verify.BlockSummary {
	var out []verify.BlockSummary
	for _, b := range res.Blocks {
		s := verify.BlockSummary{
			Block: b.Block, Lowering: string(b.Lowering), Heads: b.Heads,
			Key:   verify.HeadMap{Before: b.KVHeads, After: b.KeyHeads},
			Value: verify.HeadMap{Before: b.ValueHeadsBefore, After: b.ValueHeads},
		}
		if b.Cached {
			s.CacheBefore, s.CacheAfter = b.KVBytesBefore, b.KVBytesAfter
		}
		for _, bp := range plan.Blocks {
			if bp.Block.Name != b.Block {
				continue
			}
			s.Key.Groups, s.Key.Weights = bp.Key.Groups, bp.Key.Weights
			s.Value.Groups, s.Value.Weights = bp.Value.Groups, bp.Value.Weights
			s.Key.Learned, s.Value.Learned = bp.Learned != nil, bp.Learned != nil
		}
		out = append(out, s)
	}
	return out
}

// reference writes the tied reference: the model as the file has it, with other constants. Where operators were expanded
// to find the blocks, the constants are carried back to the fused ones, so that the expansion is held against them too.
func (p *modelPair) reference(src *source, plan *fusion.Plan) (err error) {
	before := unfuse.Remember(src.m, src.expansions)
	if err := rewrite.Tie(src.m, plan); err != nil {
		return coded(exitModel, fmt.Errorf("tied reference of %s: %w", p.original, err))
	}
	m := src.m
	if len(src.expansions) > 0 {
		fused, err := loadModel(p.original)
		if err != nil {
			return err
		}
		defer fused.Close()
		switch err := before.Carry(fused); {
		case err == nil:
			m = fused
			for _, e := range src.expansions {
				if e.Assumes != "" {
					p.notes = append(p.notes, fmt.Sprintf("%s was expanded under a condition: %s", e.Node, e.Assumes))
				}
			}
		case errors.Is(err, unfuse.ErrNotCarried):
			p.notes = append(p.notes, fmt.Sprintf("the tied reference is expanded as the rewritten model is, so its fused operators were not compared: %v", err))
		default:
			return coded(exitModel, fmt.Errorf("tied reference of %s: %w", p.original, err))
		}
	}
	if p.tied, err = verify.Beside(m); err != nil {
		return fmt.Errorf("tied reference: %w", err)
	}
	return nil
}

func (p *modelPair) close() error {
	if p.tied == nil {
		return nil
	}
	return p.tied.Remove()
}
