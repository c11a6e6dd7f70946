package verify

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/rewrite"
)

// Signature is what a model's inputs and outputs mean, as far as names, types, symbolic dimensions and the graph
// between them tell.
type Signature struct {
	Inputs  []Input
	Outputs []string
	Caches  []CachePair
	// Tokens and Logits are the input of token ids and the output with a score per token of the vocabulary; empty when
	// the model has none.
	Tokens, Logits string
	// Precision is the coarsest float type that the model holds weights in or returns.
	Precision onnxpb.TensorProto_DataType

	quantity map[string]Quantity // what each symbol counts
	multiple map[string]int64    // of the batch that a symbol stands for, where it is not 1
	fixed    map[Quantity]int    // sizes that the model does not leave open
	buffers  map[string]bool     // pasts that are one buffer with their presents, of which the first positions are filled
	masks    map[string]MaskForm // what masks of token positions hold, where that is known
	// lengths is set when an operator of the model counts the tokens of a mask and takes them for the first positions, so
	// that padding in front of a sequence means nothing to it.
	lengths bool
	// causal is set when an operator of the model has a way of its own with rows whose positions are all hidden, so that what
	// it gives for padding is not what a sum of scores and mask would give.
	causal bool
}

// Input is one input of a model.
type Input struct {
	Name  string
	DType onnxpb.TensorProto_DataType
	Dims  []graph.Dim
	Role  Role
	// Rows is the number of rows of the table that the input is an index into: the vocabulary, the positions. 0 when
	// there is none.
	Rows int64

	generation Role // what a generation operator takes it for; empty when none reads it
}

// CachePair is an input and the output that takes its place in the next step.
type CachePair struct {
	Past, Present string
	SeqAxis       int
	// Grows says that the sequence axis gets longer by the step's tokens; the keys of a cross attention stay as they are.
	Grows bool
}

// Role is what an input stands for; it decides the values that are generated.
type Role string

// Roles.
const (
	TokenIDs  Role = "tokens"      // below Rows
	MaskOnes  Role = "mask"        // 1 for a token, 0 for padding
	MaskHides Role = "hiding mask" // true for padding, as torch's key_padding_mask
	Positions Role = "positions"   // counted from the past on, padding not counted
	Places    Role = "places"      // in the buffers of a cache: counted from the past on
	Segments  Role = "segments"    // zeros
	PastCache Role = "cache"       // keys or values of earlier steps
	PastLen   Role = "past length" // how many positions are cached
	TotalLen  Role = "total length"
	LastPos   Role = "last position" // total length - 1, per sequence
	HasPast   Role = "has past"      // whether the cache is used
	Kept      Role = "logits kept"   // of so many last positions there are logits; 0 for all
	Numbers   Role = "numbers"       // normally distributed
	Flags     Role = "flags"         // true
	Integers  Role = "integers"      // of unknown meaning: ones in [batch, …], zero alone
)

// Quantity is what a dimension counts.
type Quantity string

// Quantities.
const (
	Batch   Quantity = "batch"
	Seq     Quantity = "sequence"
	Past    Quantity = "past"
	Total   Quantity = "past + sequence"
	Encoder Quantity = "encoder sequence"
	Other   Quantity = "other"
)

// roleRow recognises a role by the input's name and kind of type.
type roleRow struct {
	role  Role
	kind  func(onnxpb.TensorProto_DataType) bool
	words []string // the lower-case name has one of them
}

// roleRows are tried in order.
var roleRows = []roleRow{
	{HasPast, isBool, []string{"use_cache", "has_past"}},
	{MaskHides, isBool, []string{"padding_mask"}},
	{MaskOnes, isReal, []string{"mask"}},
	{Places, isInt, []string{rewrite.CachePosition}},
	{Positions, isInt, []string{"position"}},
	{Segments, isInt, []string{"token_type", "segment"}},
	{LastPos, isInt, []string{"seqlens_k"}},
	{TotalLen, isInt, []string{"total_seq", "total_len", "seqlen"}},
	{Kept, isInt, []string{"logits_to_keep"}},
	{PastLen, isInt, []string{"past_seq", "past_len", "start_pos"}},
	{TokenIDs, isInt, []string{"input_ids", "token", "ids"}},
}

func isInt(t onnxpb.TensorProto_DataType) bool {
	return slices.Contains([]onnxpb.TensorProto_DataType{
		onnxpb.TensorProto_INT64, onnxpb.TensorProto_INT32, onnxpb.TensorProto_INT16, onnxpb.TensorProto_INT8,
		onnxpb.TensorProto_UINT64, onnxpb.TensorProto_UINT32, onnxpb.TensorProto_UINT16, onnxpb.TensorProto_UINT8,
	}, t)
}

func isFloat(t onnxpb.TensorProto_DataType) bool {
	return slices.Contains([]onnxpb.TensorProto_DataType{
		onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_FLOAT16, onnxpb.TensorProto_BFLOAT16, onnxpb.TensorProto_DOUBLE,
	}, t)
}

func isBool(t onnxpb.TensorProto_DataType) bool { return t == onnxpb.TensorProto_BOOL }
func isReal(t onnxpb.TensorProto_DataType) bool { return isInt(t) || isFloat(t) || isBool(t) }

// CountsTokens reports whether an operator of the model counts the tokens of a mask and takes them for the first positions,
// so that padding in front of a sequence means nothing to it.
func (s *Signature) CountsTokens() bool { return s.lengths }

// Describe reads a model's signature.
func Describe(m *graph.Model) (*Signature, error) {
	s := &Signature{quantity: map[string]Quantity{}, multiple: map[string]int64{}, fixed: map[Quantity]int{}, buffers: map[string]bool{}, masks: map[string]MaskForm{}, Precision: onnxpb.TensorProto_FLOAT}
	for _, v := range m.Graph.Inputs {
		if v.Init != nil {
			continue // a weight that callers may override, or an old file's habit
		}
		in, err := describeInput(v)
		if err != nil {
			return nil, err
		}
		s.Inputs = append(s.Inputs, in)
	}
	for _, v := range m.Graph.Outputs {
		s.Outputs = append(s.Outputs, v.Name)
	}
	s.pairCaches(m.Graph)
	s.assignRoles(m.Graph)
	for _, in := range s.Inputs {
		if form, ok := formOf(in, m.Graph); ok {
			s.masks[in.Name] = form
		}
	}
	s.findLogits(m.Graph)
	s.countDims()
	s.mergedBatch(m.Graph)
	s.findPrecision(m.Graph)
	m.Graph.All(func(n *graph.Node) bool {
		if n.OpType == "GroupQueryAttention" {
			s.causal = true
			s.lengths = s.lengths || n.Input(10) == nil // without a bias that marks padding
		}
		s.causal = s.causal || n.Is("Attention")
		return true
	})
	return s, nil
}

func describeInput(v *graph.Value) (Input, error) {
	t := v.Info.GetType().GetTensorType()
	if t == nil {
		return Input{}, fmt.Errorf("input %q is not a tensor; verify can make tensors only", v.Name)
	}
	in := Input{Name: v.Name, DType: onnxpb.TensorProto_DataType(t.GetElemType())}
	if t.Shape == nil {
		return Input{}, fmt.Errorf("input %q declares no shape; give it one, or supply the input's value", v.Name)
	}
	for axis, d := range t.Shape.Dim {
		switch {
		case d.GetDimParam() != "":
			in.Dims = append(in.Dims, graph.ParseDim(d.GetDimParam()))
		case d.Value == nil || d.GetDimValue() < 0:
			in.Dims = append(in.Dims, graph.Sym(axisName(v.Name, axis)))
		default:
			in.Dims = append(in.Dims, graph.Int(d.GetDimValue()))
		}
	}
	return in, nil
}

// axisName is the symbol of a dimension that has no name of its own; callers may give its size under this name.
func axisName(input string, axis int) string { return fmt.Sprintf("%s[%d]", input, axis) }

func (s *Signature) input(name string) *Input {
	for i := range s.Inputs {
		if s.Inputs[i].Name == name {
			return &s.Inputs[i]
		}
	}
	return nil
}

func (s *Signature) cacheOf(past string) *CachePair {
	for i := range s.Caches {
		if s.Caches[i].Past == past {
			return &s.Caches[i]
		}
	}
	return nil
}

func (s *Signature) assignRoles(g *graph.Graph) {
	for i := range s.Inputs {
		in := &s.Inputs[i]
		in.Rows = tableRows(g.Value(in.Name))
		in.generation = generationRole(g.Value(in.Name))
		in.Role = s.role(in)
		if in.Role == TokenIDs && (s.Tokens == "" || strings.Contains(in.Name, "decoder")) {
			s.Tokens = in.Name
		}
	}
}

func (s *Signature) role(in *Input) Role {
	if s.cacheOf(in.Name) != nil {
		return PastCache
	}
	if in.generation != "" {
		return in.generation
	}
	name := strings.ToLower(in.Name)
	for _, r := range roleRows {
		if r.kind(in.DType) && slices.ContainsFunc(r.words, func(w string) bool { return strings.Contains(name, w) }) {
			return r.role
		}
	}
	switch {
	case isInt(in.DType) && len(in.Dims) >= 1 && in.Rows > 0:
		return TokenIDs
	case isInt(in.DType):
		return Integers
	case isBool(in.DType):
		return Flags
	}
	return Numbers
}

// passes lists operators that give indices on: unchanged from their first input, or computed from any (-1).
var passes = map[string]int{
	"Identity": 0, "Cast": 0, "Reshape": 0, "Flatten": 0, "Squeeze": 0, "Unsqueeze": 0, "Transpose": 0, "Expand": 0, "Slice": 0,
	"Clip": 0, "Split": 0, "Concat": -1, "Add": -1, "Sub": -1, "Mul": -1, "Where": -1,
}

// tableRows follows indices to the tables they are looked up in and returns the smallest number of rows, 0 when there
// is no table.
func tableRows(v *graph.Value) int64 {
	rows := int64(0)
	seen := map[*graph.Value]bool{}
	queue := []*graph.Value{v}
	for len(queue) > 0 {
		v, queue = queue[0], queue[1:]
		if v == nil || seen[v] {
			continue
		}
		seen[v] = true
		for _, u := range v.Users() {
			if u.Node == nil {
				continue
			}
			if n := lookup(u); n > 0 && (rows == 0 || n < rows) {
				rows = n
			}
			if at, ok := passes[u.Node.OpType]; ok && (at == u.Index || at < 0) {
				queue = append(queue, u.Node.Out...)
			}
			queue = append(queue, prompted(u)...)
		}
	}
	return rows
}

// tableInputs says, by operator and number of an index input, which other input is the table.
var tableInputs = map[string]map[int]int{
	"Gather":                                 {1: 0},
	"com.microsoft GatherBlockQuantized":     {1: 0},
	"com.microsoft EmbedLayerNormalization":  {0: 2, 1: 4, 8: 3},
	"com.microsoft QEmbedLayerNormalization": {0: 2, 1: 4},
	"com.microsoft RotaryEmbedding":          {1: 2},
	"RotaryEmbedding":                        {3: 1},
}

// operator is a node's operator with its domain, when that is not the standard's.
func operator(n *graph.Node) string {
	if n.Is(n.OpType) {
		return n.OpType
	}
	return n.Domain + " " + n.OpType
}

// dresses lists operators that a table may wear.
var dresses = []string{"Identity", "Cast", "DequantizeLinear"}

// lookup returns the rows of the table when use u is an index into one, else 0.
func lookup(u graph.Use) int64 {
	table, ok := tableInputs[operator(u.Node)][u.Index]
	if !ok {
		return 0
	}
	axis := int64(0)
	if strings.Contains(u.Node.OpType, "Gather") {
		axis = u.Node.Int("axis", u.Node.Int("gather_axis", 0))
	}
	v := u.Node.Input(table)
	for v != nil && v.Const() == nil && v.Producer != nil && slices.Contains(dresses, v.Producer.OpType) {
		v = v.Producer.Input(0)
	}
	t := v.Const()
	if t == nil || len(t.Dims()) < 2 {
		return 0 // a list of sizes rather than a table of vectors
	}
	if axis < 0 {
		axis += int64(len(t.Dims()))
	}
	if axis < 0 || axis >= int64(len(t.Dims())) {
		return 0
	}
	return t.Dims()[axis]
}

// findLogits picks the output that scores tokens: by its name, else the only float output as wide as the vocabulary.
func (s *Signature) findLogits(g *graph.Graph) {
	var wide []string
	tokens := s.input(s.Tokens)
	for _, v := range g.Outputs {
		t := v.Info.GetType().GetTensorType()
		if t != nil && !isFloat(onnxpb.TensorProto_DataType(t.GetElemType())) || s.isPresent(v.Name) {
			continue
		}
		name := strings.ToLower(v.Name)
		if tokens != nil && (strings.Contains(name, "logits") || strings.Contains(name, "lm_head")) {
			s.Logits = v.Name
			return
		}
		dims := t.GetShape().GetDim()
		if tokens != nil && tokens.Rows > 0 && len(dims) == 3 && dims[2].GetDimValue() == tokens.Rows {
			wide = append(wide, v.Name)
		}
	}
	if len(wide) == 1 {
		s.Logits = wide[0]
	}
}

func (s *Signature) isPresent(output string) bool {
	return slices.ContainsFunc(s.Caches, func(c CachePair) bool { return c.Present == output })
}

func (s *Signature) findPrecision(g *graph.Graph) {
	see := func(t onnxpb.TensorProto_DataType) {
		if epsilon(t) > epsilon(s.Precision) {
			s.Precision = t
		}
	}
	for _, v := range g.Inits {
		see(v.Init.DType())
	}
	for _, v := range g.Outputs {
		see(onnxpb.TensorProto_DataType(v.Info.GetType().GetTensorType().GetElemType()))
	}
	for _, in := range s.Inputs {
		see(in.DType)
	}
}

// nameWords tells what a symbol counts by words of its name, tried in order. "batch" comes last: there are names like
// max_seq_len_in_batch.
var nameWords = []struct {
	quantity Quantity
	words    []string
}{
	{Encoder, []string{"encoder"}},
	{Total, []string{"total", "mask", "all_seq"}},
	{Past, []string{"past", "cache", "kv_", "history", "mem"}},
	{Seq, []string{"seq", "len", "time", "token"}},
	{Batch, []string{"batch"}},
}

func quantityByName(symbol string) (Quantity, bool) {
	symbol = strings.ToLower(symbol)
	for _, r := range nameWords {
		if slices.ContainsFunc(r.words, func(w string) bool { return strings.Contains(symbol, w) }) {
			return r.quantity, true
		}
	}
	return Other, false
}

// countDims decides what every symbol counts: by its place in an input of token ids, else by its name when it has one
// that tells, else by its place in an input whose role is known.
func (s *Signature) countDims() {
	if tokens := s.input(s.Tokens); tokens != nil {
		for axis, d := range tokens.Dims {
			if sym, ok := soleSymbol(d); ok {
				s.quantity[sym] = s.axisQuantity(*tokens, axis)
			}
		}
	}
	for _, in := range s.Inputs {
		for axis, d := range in.Dims {
			for _, sym := range d.Symbols() {
				if _, known := s.quantity[sym]; known {
					continue
				}
				if sym == axisName(in.Name, axis) {
					continue
				}
				if q, ok := quantityByName(sym); ok {
					s.quantity[sym] = q
				}
			}
		}
	}
	// Roles whose axes are certain come first: a symbol means the same wherever it stands.
	order := []Role{TokenIDs, PastCache, Positions, Places, Segments, MaskOnes, MaskHides, Numbers, Flags, Integers, LastPos}
	for _, role := range order {
		for _, in := range s.Inputs {
			if in.Role != role {
				continue
			}
			for axis, d := range in.Dims {
				q := s.axisQuantity(in, axis)
				if n, ok := d.Const(); ok {
					if _, known := s.fixed[q]; !known && q != Other && (role != Numbers || s.batched(in, q)) {
						s.fixed[q] = int(n)
					}
					continue
				}
				if sym, ok := soleSymbol(d); ok {
					if _, known := s.quantity[sym]; !known {
						s.quantity[sym] = q
					}
				}
			}
		}
	}
}

// batched reports whether an axis of numbers that should count sequences does: numbers come in many forms, weights among
// them, so nothing else may say what the batch is.
func (s *Signature) batched(in Input, q Quantity) bool {
	return q == Batch && s.Tokens == "" && len(in.Dims) >= 3 && !slices.Contains(slices.Collect(maps.Values(s.quantity)), Batch)
}

// soleSymbol returns the symbol that d consists of.
func soleSymbol(d graph.Dim) (string, bool) {
	syms := d.Symbols()
	if len(syms) != 1 || !d.Equal(graph.Sym(syms[0])) {
		return "", false
	}
	return syms[0], true
}

// axisQuantity says what an axis of an input counts by the input's role.
func (s *Signature) axisQuantity(in Input, axis int) Quantity {
	rank := len(in.Dims)
	length := Seq
	if strings.Contains(strings.ToLower(in.Name), "encoder") {
		length = Encoder
	}
	switch in.Role {
	case TokenIDs, Positions, Places, Segments:
		if axis == rank-1 {
			return length
		}
		return Batch
	case MaskOnes, MaskHides:
		if length == Seq && s.grows() && axis == rank-1 {
			length = Total
		}
		switch {
		case axis == rank-1:
			return length
		case axis == 0:
			return Batch
		case axis == rank-2:
			return Seq
		}
		return Other
	case PastCache:
		c := s.cacheOf(in.Name)
		switch {
		case axis == c.SeqAxis && c.Grows:
			return Past
		case axis == c.SeqAxis:
			return Encoder
		case axis == batchAxis(in):
			return Batch
		}
		return Other
	case Numbers, Flags, Integers, LastPos:
		switch {
		case axis == 0:
			return Batch
		case axis == 1 && rank == 3:
			return length
		}
	}
	return Other
}

// batchAxis is the first axis of a cache, or the second when keys and values are stacked in one tensor.
func batchAxis(in Input) int {
	if n, fixed := in.Dims[0].Const(); fixed && n == 2 && len(in.Dims) == 5 {
		return 1
	}
	return 0
}

// grows reports whether the model has a cache that gets longer with every step.
func (s *Signature) grows() bool {
	return slices.ContainsFunc(s.Caches, func(c CachePair) bool { return c.Grows })
}

// IsDecoder reports whether the model can generate: it scores tokens, and takes token ids of any length, or one at a
// time beside a cache.
func (s *Signature) IsDecoder() bool {
	in := s.input(s.Tokens)
	if in == nil || s.Logits == "" || len(in.Dims) == 0 {
		return false
	}
	n, fixed := in.Dims[len(in.Dims)-1].Const()
	return !fixed || n == 1 && s.grows()
}
