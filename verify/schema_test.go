package verify

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// validate holds a report against docs/report.schema.json.
func validate(t *testing.T, r *Report) {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile("../docs/report.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(map[string]any{"report": r}); err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(v); err != nil {
		t.Errorf("%v", err)
	}
}

func TestReportsKeepTheirSchema(t *testing.T) {
	q := compress(t)
	q.Steps = 2
	validate(t, run(t, q))
	full := filled(reflect.TypeFor[Report]()).Interface().(Report)
	full.Schema = SchemaVersion
	validate(t, &full)
}

// filled makes a value of a type with every field set and every list of one element, so that no field is missing from the
// schema. Enumerations get their first value.
func filled(typ reflect.Type) reflect.Value {
	v := reflect.New(typ).Elem()
	switch typ {
	case reflect.TypeFor[Kind]():
		v.SetString(string(LogitsOutput))
		return v
	case reflect.TypeFor[Point]():
		v.SetString(string(AttentionPoint))
		return v
	case reflect.TypeFor[[]int](): // StepOf must go with PerStep
		return reflect.ValueOf([]int{1})
	case reflect.TypeFor[Gate]():
		return reflect.ValueOf(Gate{Section: "drift", Metric: "kl", Unmeasured: "x", First: &Where{Output: "y"}, Others: 1})
	case reflect.TypeFor[Tolerance]():
		return reflect.ValueOf(DefaultDrift())
	}
	switch typ.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(typ.Elem()))
		v.Elem().Set(filled(typ.Elem()))
	case reflect.Struct:
		for i := range typ.NumField() {
			if typ.Field(i).IsExported() {
				v.Field(i).Set(filled(typ.Field(i).Type))
			}
		}
	case reflect.Slice:
		v.Set(reflect.Append(v, filled(typ.Elem())))
	case reflect.Array:
		for i := range typ.Len() {
			v.Index(i).Set(filled(typ.Elem()))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(typ))
		v.SetMapIndex(reflect.ValueOf("x"), filled(typ.Elem()))
	case reflect.String:
		v.SetString(strings.Repeat("x", 3))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint64:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(0.5)
	}
	return v
}
