package fusion

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"onnx-dha/internal/suggest"
)

// The decoder walks the syntax tree instead of filling structs by reflection, because every number needs its place: that
// a head does not exist is only known once there is a model.

// field is one key of a mapping: set stores its value in dst.
type field[T any] struct {
	name     string
	required bool
	set      func(s *source, dst *T, n ast.Node) error
}

var configFields = []field[Config]{
	{"version", true, func(s *source, c *Config, n ast.Node) (err error) {
		c.Version, err = integer(s, n, "version")
		return err
	}},
	{"model", false, func(s *source, c *Config, n ast.Node) error { return mapping(s, "model", n, modelFields, c) }},
	{"method", false, text(func(c *Config) *string { return &c.Method })},
	{"lowering", false, text(func(c *Config) *Lowering { return &c.Lowering })},
	{"weights", false, text(func(c *Config) *string { return &c.Weights })},
	{"weights_hash", false, text(func(c *Config) *string { return &c.WeightsHash })},
	{"layers", false, func(s *source, c *Config, n ast.Node) error {
		entries, err := sequence(s, n, "layers", "a list of blocks")
		if err != nil {
			return err
		}
		for _, e := range entries {
			l := Layer{at: at(e)}
			if err := mapping(s, "entry of layers", e, layerFields, &l); err != nil {
				return err
			}
			c.Layers = append(c.Layers, l)
		}
		return nil
	}},
	{"verify", false, func(s *source, c *Config, n ast.Node) error {
		c.Verify = Limits{}
		return mapping(s, "verify", n, verifyFields, &c.Verify)
	}},
}

var modelFields = []field[Config]{
	{"fingerprint", true, text(func(c *Config) *string { return &c.Fingerprint })},
}

var layerFields = []field[Layer]{
	{"block", true, text(func(l *Layer) *string { return &l.Block })},
	{"key", false, func(s *source, l *Layer, n ast.Node) (err error) { l.Key, err = decodeHeads(s, "key", n); return err }},
	{"value", false, func(s *source, l *Layer, n ast.Node) (err error) {
		l.Value, err = decodeHeads(s, "value", n)
		return err
	}},
}

var headsFields = []field[Heads]{
	{"groups", false, func(s *source, h *Heads, n ast.Node) (err error) {
		h.Groups, h.headAt, _, err = matrix(s, n, "groups", integer)
		return err
	}},
	{"weights", false, func(s *source, h *Heads, n ast.Node) (err error) {
		h.Weights, h.weightAt, h.rowAt, err = matrix(s, n, "weights", number)
		return err
	}},
}

var verifyFields = func() []field[Limits] {
	var fields []field[Limits]
	for _, m := range Metrics {
		fields = append(fields, field[Limits]{m.Name, false, func(s *source, l *Limits, n ast.Node) error {
			x, err := number(s, n, "verify."+m.Name)
			if err != nil {
				return err
			}
			(*l)[m.Name] = x
			return nil
		}})
	}
	return fields
}()

// text makes the setter of a string field.
func text[T any, S ~string](f func(*T) *S) func(*source, *T, ast.Node) error {
	return func(s *source, dst *T, n ast.Node) error {
		str, ok := n.(*ast.StringNode)
		if !ok {
			return s.errorf(at(n), "%s where a string belongs", describe(n))
		}
		if !utf8.ValidString(str.Value) {
			return s.errorf(at(n), "the string is not valid UTF-8")
		}
		*f(dst) = S(str.Value)
		return nil
	}
}

// decode reads the text into a Config without judging what it says.
func decode(name string, data []byte) (*Config, error) {
	s := &source{name: name, lines: strings.Split(string(data), "\n"), keys: map[string]pos{}}
	root, err := s.parse(data)
	if err != nil {
		return nil, err
	}
	c := &Config{src: s}
	if err := mapping(s, "", root, configFields, c); err != nil {
		return nil, err
	}
	return c, nil
}

// parse turns the text into the root node of its only document.
func (s *source) parse(data []byte) (root ast.Node, err error) {
	if !utf8.Valid(data) || slices.Contains(data, 0) {
		return nil, &Error{File: s.name, Msg: "not a text file; want YAML in UTF-8"}
	}
	// The parser is another project's and reads bytes from outside; a bug in it must not end this program.
	defer func() {
		if r := recover(); r != nil {
			root, err = nil, &Error{File: s.name, Msg: fmt.Sprintf("the YAML parser failed: %v", r)}
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if err := s.screen(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return nil, s.syntax(err)
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if root != nil {
			return nil, s.errorf(at(doc.Body), "a second document; a configuration is one")
		}
		root = doc.Body
	}
	if root == nil {
		return nil, &Error{File: s.name, Msg: `empty; a configuration begins with "version: 1"`}
	}
	return root, nil
}

// screen refuses what a configuration never needs and what the parser is slow or deeply recursive on: anchors and
// aliases, tags, explicit keys, nesting beyond a handful of levels.
func (s *source) screen(tokens token.Tokens) error {
	const deepest = 16
	depth, dashes, dashLine := 0, 0, 0
	for _, t := range tokens {
		here := pos{t.Position.Line, t.Position.Column}
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return s.errorf(here, "anchors and aliases are not part of a configuration; write the value out")
		case token.TagType, token.DirectiveType, token.MappingKeyType:
			return s.errorf(here, "%q is not part of a configuration", shorten(t.Value))
		case token.InvalidType:
			return s.errorf(here, "%s", t.Error)
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType:
			if here.line != dashLine {
				dashes, dashLine = 0, here.line
			}
			dashes++
		}
		// Block nesting shows in the column, so its depth is bounded with it.
		if depth+dashes > deepest || (t.Type == token.SequenceEntryType || t.Type == token.MappingValueType && depth == 0) && here.col > 2000 {
			return s.errorf(here, "nested too deeply for a configuration")
		}
	}
	return nil
}

// syntax puts the parser's error into our form.
func (s *source) syntax(err error) error {
	var located interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if errors.As(err, &located) {
		if t := located.GetToken(); t != nil && t.Position != nil {
			return s.errorf(pos{t.Position.Line, t.Position.Column}, "%s", firstLine(located.GetMessage()))
		}
	}
	return &Error{File: s.name, Msg: firstLine(err.Error())}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// mapping decodes the keys of a mapping into dst; what names it in messages ("" for the whole file).
func mapping[T any](s *source, what string, n ast.Node, fields []field[T], dst *T) error {
	var entries []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		entries = n.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{n}
	default:
		if what == "" {
			return s.errorf(at(n), `%s where "key: value" lines belong; a configuration begins with "version: 1"`, describe(n))
		}
		return s.errorf(at(n), "%s is %s; want the keys %s", what, describe(n), list(fields))
	}
	seen := map[string]bool{}
	for _, e := range entries {
		key := e.Key.GetToken().Value
		i := slices.IndexFunc(fields, func(f field[T]) bool { return f.name == key })
		if i < 0 {
			var known []string
			for _, f := range fields {
				known = append(known, f.name)
			}
			in := ""
			if what != "" {
				in = " in " + what
			}
			return s.errorf(at(e.Key), "unknown key %q%s%s; known here: %s", shorten(key), in, strings.TrimSuffix(suggest.DidYouMean(key, known), "?"), list(fields))
		}
		if seen[key] {
			return s.errorf(at(e.Key), "key %q is given twice", key)
		}
		seen[key] = true
		if _, layers := any(dst).(*Layer); !layers {
			s.keys[strings.TrimPrefix(what+"."+key, ".")] = at(e.Value)
		}
		if isNull(e.Value) {
			return s.errorf(at(e.Key), "key %q has no value; leave it out or give one", key)
		}
		if err := fields[i].set(s, dst, e.Value); err != nil {
			return err
		}
	}
	for _, f := range fields {
		if f.required && !seen[f.name] {
			where := what
			if where == "" {
				where = "the configuration"
			}
			return s.errorf(at(n), "%s has no %q", where, f.name)
		}
	}
	return nil
}

func list[T any](fields []field[T]) string {
	var out []string
	for _, f := range fields {
		out = append(out, f.name)
	}
	return strings.Join(out, ", ")
}

// decodeHeads reads the two forms of a key or value entry: a number of heads, or groups with or without weights.
func decodeHeads(s *source, what string, n ast.Node) (*Heads, error) {
	h := &Heads{at: at(n)}
	if _, ok := n.(*ast.IntegerNode); ok {
		count, err := integer(s, n, what)
		if err != nil {
			return nil, err
		}
		h.Count = count
		return h, nil
	}
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
	default:
		return nil, s.errorf(at(n), "%s is %s; want a number of heads (%s: 4) or groups of heads (%s: {groups: [[0, 1], [2, 3]]})", what, describe(n), what, what)
	}
	if err := mapping(s, what, n, headsFields, h); err != nil {
		return nil, err
	}
	if h.Groups == nil && h.Weights == nil {
		return nil, s.errorf(h.at, "%s has no %q", what, "groups")
	}
	return h, nil
}

// matrix reads a list of lists of numbers with the place of each number and of each row.
func matrix[T any](s *source, n ast.Node, what string, elem func(*source, ast.Node, string) (T, error)) (m [][]T, where [][]pos, rows []pos, err error) {
	outer, err := sequence(s, n, what, "a list of lists of numbers")
	if err != nil {
		return nil, nil, nil, err
	}
	m = [][]T{}
	for _, r := range outer {
		inner, err := sequence(s, r, "row of "+what, "a list of numbers")
		if err != nil {
			return nil, nil, nil, err
		}
		row := make([]T, 0, len(inner))
		at1 := make([]pos, 0, len(inner))
		for _, x := range inner {
			v, err := elem(s, x, "entry of "+what)
			if err != nil {
				return nil, nil, nil, err
			}
			row = append(row, v)
			at1 = append(at1, at(x))
		}
		m, where, rows = append(m, row), append(where, at1), append(rows, at(r))
	}
	return m, where, rows, nil
}

func sequence(s *source, n ast.Node, what, want string) ([]ast.Node, error) {
	if seq, ok := n.(*ast.SequenceNode); ok {
		return seq.Values, nil
	}
	return nil, s.errorf(at(n), "%s is %s; want %s", what, describe(n), want)
}

func integer(s *source, n ast.Node, what string) (int, error) {
	if i, ok := n.(*ast.IntegerNode); ok {
		const most = 1 << 30 // no model has that many heads; keeps sums of counts far from overflow
		switch v := i.Value.(type) {
		case int64:
			if v >= -most && v <= most {
				return int(v), nil
			}
		case uint64:
			if v <= most {
				return int(v), nil
			}
		}
		return 0, s.errorf(at(n), "%s is %s; that is out of range", what, shorten(i.Token.Value))
	}
	return 0, s.errorf(at(n), "%s is %s; want a whole number", what, describe(n))
}

var floatForm = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)

func number(s *source, n ast.Node, what string) (float64, error) {
	switch v := n.(type) {
	case *ast.FloatNode:
		return v.Value, nil
	case *ast.IntegerNode:
		switch i := v.Value.(type) {
		case int64:
			return float64(i), nil
		case uint64:
			return float64(i), nil
		}
	case *ast.StringNode:
		// The parser takes an exponent without a decimal point (1e-3) for a word; YAML 1.2 §10.3.2 says it is a number.
		if x, err := strconv.ParseFloat(v.Value, 64); v.Token.Type == token.StringType && floatForm.MatchString(v.Value) && err == nil {
			return x, nil
		}
	case *ast.NanNode, *ast.InfinityNode:
		return 0, s.errorf(at(n), "%s is %s; want a finite number", what, n.GetToken().Value)
	}
	return 0, s.errorf(at(n), "%s is %s; want a number", what, describe(n))
}

// at returns the place of a node: of a mapping or sequence, where its first entry starts.
func at(n ast.Node) pos {
	t := n.GetToken()
	switch m := n.(type) {
	case *ast.MappingValueNode:
		t = m.Key.GetToken()
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			t = m.Values[0].Key.GetToken()
		}
	}
	if t == nil || t.Position == nil {
		return pos{}
	}
	return pos{t.Position.Line, t.Position.Column}
}

func isNull(n ast.Node) bool {
	_, ok := n.(*ast.NullNode)
	return ok
}

// describe says in a person's words what a node is.
func describe(n ast.Node) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return fmt.Sprintf("the string %q", shorten(n.Value))
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.IntegerNode, *ast.FloatNode:
		return "the number " + shorten(n.GetToken().Value)
	case *ast.BoolNode:
		return "the truth value " + n.GetToken().Value
	case *ast.NullNode:
		return "nothing"
	case *ast.NanNode, *ast.InfinityNode:
		return n.GetToken().Value
	case *ast.SequenceNode:
		return "a list"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	}
	return strings.ToLower(n.Type().String())
}
