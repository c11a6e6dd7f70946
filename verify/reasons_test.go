package verify

import "testing"

// What keeps every case from being compared is said once; a broken limit is said for every line, with its numbers.
func TestReasonsAreSaidOnce(t *testing.T) {
	fails := func(name, output, why string) Line {
		kind := OtherOutput
		if output != "" {
			kind = CacheOutput
		}
		return Line{Case: name, Output: output, Kind: kind, Broken: []string{why}}
	}
	over := func(name, why string) Line {
		return Line{Case: name, Output: "logits", Kind: LogitsOutput, Steps: 3, WorstStep: 2, Metrics: Metrics{Elements: 5}, Limits: 1, Broken: []string{why}}
	}
	exact := &Section{Lines: []Line{
		fails("B1 S1 T0", "", "it failed with ids int64[1,1]: no kernel"),
		fails("B2 S8 T0", "", "it failed with ids int64[2,8]: no kernel"),
		fails("decode B1 S8+20", "", "step 0: it failed with ids int64[1,8]: no kernel"),
		fails("B1 S5 T0", "", "it failed with ids int64[1,5]: no memory"),
		over("B1 S9 T0", "max rel 2e-3 > 0.0001"),
		over("B2 S9 T0", "max rel 3e-3 > 0.0001"),
	}}
	drift := &Section{Lines: []Line{
		fails("B1 S1 T0", "", "it failed with ids int64[1,1]: no kernel"),
		fails("B2 S8 T0", "", "it failed with ids int64[2,8]: no kernel"),
		fails("B1 S5 T0", "past.0", "it is float[1,8,5,4], want float[1,4,5,4]"),
		fails("B1 S5 T0", "past.1", "it is float[1,8,5,4], want float[1,2,5,4]"),
		fails("B1 S6 T0", "past.0", "it is float[1,8,6,4], want float[1,4,6,4]"),
	}}
	said := reasons{}
	for _, tc := range []struct {
		section *Section
		want    string
	}{
		{exact, "FAIL B1 S1 T0: it failed with ids int64[1,1]: no kernel\nFAIL 2 more lines, for the same reason\n" +
			"FAIL B1 S5 T0: it failed with ids int64[1,5]: no memory\n" +
			"FAIL B1 S9 T0 logits (worst at step 2): max rel 2e-3 > 0.0001\nFAIL B2 S9 T0 logits (worst at step 2): max rel 3e-3 > 0.0001\n"},
		{drift, "FAIL B1 S1 T0: for the reason given above\nFAIL 1 more line, for the same reason\n" +
			"FAIL B1 S5 T0 2 caches, first past.0: it is float[1,8,5,4], want float[1,4,5,4]\nFAIL 1 more line, for the same reason\n"},
	} {
		if got := said.text(tc.section.condensed()); got != tc.want {
			t.Errorf("got\n%swant\n%s", got, tc.want)
		}
	}
}
