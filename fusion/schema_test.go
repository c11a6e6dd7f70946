package fusion

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestSchema holds docs/config.schema.json against the decoder: what Parse accepts the schema accepts, and it refuses
// whatever Parse refuses that a schema can express.
func TestSchema(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile("../docs/config.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	validate := func(text string) error {
		v, err := decodeAny(text)
		if err != nil {
			return err
		}
		return schema.Validate(v)
	}
	demo, err := os.ReadFile("../testmodels/char-llama/dha.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, good := range []string{
		string(demo),
		strings.Replace(example, "-1e-3", "-0.001", 1), // decodeAny does not know exponents without a point
		"version: 1\n",
		"version: 1\nlayers: []\n",
		"version: 1\nlayers: [{block: a, value: {groups: [[0]], weights: [[-2]]}}]\nverify: {kl: 1, top1: 0.5, top5: 1, cosine: -1, sqnr_db: -3, kl_max: 7, max_abs: 0, max_rel: 0.1, mean_abs: 1, js: 0.1, top10: 1, ppl: 40, ppl_ratio: 1.05, exact_match: 0.5, agreed_tokens: 12, psnr_db: 30, mean_rel: 0.1, p99_abs: 1, p99_rel: 0.1}\n",
	} {
		if _, err := Parse("dha.yaml", []byte(good)); err != nil {
			t.Errorf("Parse: %v in\n%s", err, good)
		}
		if err := validate(good); err != nil {
			t.Errorf("schema: %v in\n%s", err, good)
		}
	}
	for _, l := range Lowerings {
		if err := validate("version: 1\nlowering: " + string(l) + "\n"); err != nil {
			t.Errorf("schema: %v", err)
		}
	}
	// A schema sees values, not the text, and cannot compare one place with another.
	beyond := []string{"alias", "anchor", "tag", "second document", "block twice", "head in two groups", "rows of weights", "weights of a row"}
	for _, tc := range refused {
		err := validate(tc.yaml)
		if slices.Contains(beyond, tc.name) {
			continue
		}
		if err == nil {
			t.Errorf("the schema accepts %q, which Parse refuses with %q", tc.name, tc.want)
		}
	}
}

// decodeAny turns YAML into the values that a JSON decoder would give.
func decodeAny(text string) (any, error) {
	js, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(strings.NewReader(string(js)))
}

func TestSchemaKeysAreOurs(t *testing.T) {
	data, err := os.ReadFile("../docs/config.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	properties := func(path ...string) []string {
		m := v.(map[string]any)
		for _, p := range path {
			m = m[p].(map[string]any)
		}
		var keys []string
		for k := range m["properties"].(map[string]any) {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		return keys
	}
	same := func(what string, got []string, want string) {
		names := strings.Split(want, ", ")
		slices.Sort(names)
		if !slices.Equal(got, names) {
			t.Errorf("%s: the schema has %v, the decoder %v", what, got, names)
		}
	}
	same("top", properties(), list(configFields))
	same("model", properties("properties", "model"), list(modelFields))
	same("verify", properties("properties", "verify"), list(verifyFields))
	same("layers", properties("properties", "layers", "items"), list(layerFields))
	heads := v.(map[string]any)["$defs"].(map[string]any)["heads"].(map[string]any)["oneOf"].([]any)[1].(map[string]any)["properties"].(map[string]any)
	var keys []string
	for k := range heads {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	same("heads", keys, list(headsFields))
}
