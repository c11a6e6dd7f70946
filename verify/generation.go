package verify

import "onnx-dha/graph"

// Roles of the inputs of ONNX Runtime's generation operators, which the operators check for sense.
const (
	WantedLength Role = "wanted length" // of the sequences, prompt included
	Beams        Role = "beams"
	Ones         Role = "ones" // penalties of no effect, least lengths, numbers of results
)

// newTokens is how many tokens an operator is to generate.
const newTokens = 4

func init() {
	makers[WantedLength] = all(func(b batch, _ []int64) int { return b.Past + b.Seq + newTokens })
	makers[Beams] = all(func(batch, []int64) int { return 2 })
	makers[Ones] = all(func(batch, []int64) int { return 1 })
}

// generationInputs says what the inputs of generation operators stand for, by number (contrib_ops/cpu/transformers).
var generationInputs = map[string]map[int]Role{
	"com.microsoft GreedySearch":      {1: WantedLength, 2: Ones, 3: Ones},
	"com.microsoft Sampling":          {1: WantedLength, 2: Ones, 3: Ones, 8: Ones},
	"com.microsoft BeamSearch":        {1: WantedLength, 2: Ones, 3: Beams, 4: Ones, 5: Ones, 6: Ones},
	"com.microsoft WhisperBeamSearch": {1: WantedLength, 2: Ones, 3: Beams, 4: Ones, 5: Ones, 6: Ones},
}

// generationRole returns the role of a value that a generation operator reads, empty when none does.
func generationRole(v *graph.Value) Role {
	for _, u := range v.Users() {
		if u.Node != nil {
			if r, ok := generationInputs[operator(u.Node)][u.Index]; ok {
				return r
			}
		}
	}
	return ""
}

// prompted lists the inputs of bodies that a generation operator feeds with the prompt, its first input.
func prompted(u graph.Use) []*graph.Value {
	if generationInputs[operator(u.Node)] == nil || u.Index != 0 {
		return nil
	}
	var out []*graph.Value
	for _, attr := range []string{"encoder", "decoder"} {
		for _, body := range u.Node.Subgraphs[attr] {
			if len(body.Inputs) > 0 {
				out = append(out, body.Inputs[0])
			}
		}
	}
	return out
}
