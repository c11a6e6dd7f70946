// Package ort runs models in ONNX Runtime, over github.com/yalue/onnxruntime_go: it finds and loads the library,
// creates sessions on an execution provider, and runs them with named tensors of any shape and element type.
package ort

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	binding "github.com/yalue/onnxruntime_go"

	"onnx-dha/graph/onnxpb"
)

// Options say how a session runs. The zero value is the CPU with the runtime's own choice of threads.
type Options struct {
	Provider string // one of Providers; empty for "cpu"
	Device   int    // number of the GPU
	Threads  int    // threads within an operator; 0 lets the runtime choose
	// DisableOptimization runs the graph as it is written.
	DisableOptimization bool
	// ProviderOptions are passed on to the execution provider as they are.
	ProviderOptions map[string]string
	// Config entries are passed on as session configuration (the runtime's "session.*" and "ep.*" keys).
	Config map[string]string
	// Profile, when not empty, is the prefix of the file that the session's profile is written to.
	Profile string
}

// IO describes one input or output of a model.
type IO struct {
	Name  string
	DType onnxpb.TensorProto_DataType // UNDEFINED for what is not a tensor
	Shape []int64                     // -1 where it is dynamic; empty for a scalar, and when the model does not say
	// Symbols holds the name of each dynamic dimension, "" where there is none.
	Symbols []string
}

// Session is a loaded model. Its methods may be called from several goroutines; Close must come last.
type Session struct {
	Path string

	mu      sync.RWMutex // held for reading by runs, for writing by Close
	session *binding.DynamicAdvancedSession
	handle  unsafe.Pointer
	inputs  []IO
	outputs []IO
	names   map[string]cName
	// Where the execution provider keeps what it computes.
	provider string
	device   int
}

// NewSession loads the model at path. The library must have been opened. Weights in external files are found beside
// the model.
func NewSession(path string, o Options) (*Session, error) {
	if Version() == "" {
		return nil, fmt.Errorf("model %q: the ONNX Runtime library is not loaded; call ort.Open first", path)
	}
	opts, err := sessionOptions(o)
	if err != nil {
		return nil, fmt.Errorf("model %q: %w", path, err)
	}
	defer opts.Destroy()
	b, err := binding.NewDynamicAdvancedSession(path, nil, nil, opts)
	if err != nil {
		msg := strings.TrimPrefix(root(err).Error(), "Load model from "+path+" failed:")
		return nil, fmt.Errorf("model %q: ONNX Runtime %s cannot load it: %s", path, Version(), msg)
	}
	s := &Session{Path: path, session: b, names: map[string]cName{}, provider: o.Provider, device: o.Device}
	if err := s.describe(); err != nil {
		s.Close()
		return nil, fmt.Errorf("model %q: %w", path, err)
	}
	return s, nil
}

func (s *Session) describe() (err error) {
	if s.handle, err = sessionHandle(s.session); err != nil {
		return err
	}
	if s.inputs, err = describe(s.handle, false); err != nil {
		return err
	}
	if s.outputs, err = describe(s.handle, true); err != nil {
		return err
	}
	for _, io := range slices.Concat(s.inputs, s.outputs) {
		if _, ok := s.names[io.Name]; !ok {
			s.names[io.Name] = newName(io.Name)
		}
	}
	return nil
}

func sessionOptions(o Options) (*binding.SessionOptions, error) {
	opts, err := binding.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	level := binding.GraphOptimizationLevel(binding.GraphOptimizationLevelEnableAll)
	if o.DisableOptimization {
		level = binding.GraphOptimizationLevelDisableAll
	}
	set := []error{
		opts.SetGraphOptimizationLevel(level),
		opts.SetIntraOpNumThreads(o.Threads),
		opts.SetLogSeverityLevel(binding.LoggingLevelFatal), // failures come back as errors
		// The idle threads of one session would otherwise spin against the working ones of another.
		opts.AddSessionConfigEntry("session.force_spinning_stop", "1"),
		opts.AddSessionConfigEntry("session.use_env_allocators", "1"),
	}
	for _, k := range slices.Sorted(maps.Keys(o.Config)) {
		set = append(set, opts.AddSessionConfigEntry(k, o.Config[k]))
	}
	if o.Profile != "" {
		set = append(set, opts.EnableProfiling(o.Profile))
	}
	set = append(set, appendProvider(opts, o))
	if err := errors.Join(set...); err != nil {
		opts.Destroy()
		return nil, err
	}
	return opts, nil
}

// Inputs describes the model's inputs, in order. The slice must not be changed.
func (s *Session) Inputs() []IO { return s.inputs }

// Outputs describes the model's outputs, in order. The slice must not be changed.
func (s *Session) Outputs() []IO { return s.outputs }

// Input returns the input called name.
func (s *Session) Input(name string) (IO, bool) { return find(s.inputs, name) }

// Output returns the output called name.
func (s *Session) Output(name string) (IO, bool) { return find(s.outputs, name) }

func find(ios []IO, name string) (IO, bool) {
	i := slices.IndexFunc(ios, func(io IO) bool { return io.Name == name })
	if i < 0 {
		return IO{}, false
	}
	return ios[i], true
}

// Close frees the session. It waits for runs that are under way; closing twice is harmless.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil {
		return nil
	}
	err := s.session.Destroy()
	s.session, s.handle = nil, nil
	for _, n := range s.names {
		freeName(n)
	}
	s.names = nil
	return err
}

// Run feeds the inputs and returns all outputs by name, each in memory of its own.
func (s *Session) Run(ctx context.Context, in map[string]*Tensor) (map[string]*Tensor, error) {
	names := make([]string, len(s.outputs))
	for i, o := range s.outputs {
		names[i] = o.Name
	}
	return s.RunOutputs(ctx, in, names...)
}

// RunOutputs is Run for the named outputs only: the runtime still computes all that the graph holds.
func (s *Session) RunOutputs(ctx context.Context, in map[string]*Tensor, outputs ...string) (map[string]*Tensor, error) {
	out := make(map[string]*Tensor, len(outputs))
	for _, n := range outputs {
		out[n] = nil
	}
	if err := s.RunInto(ctx, in, out); err != nil {
		return nil, err
	}
	return out, nil
}

// RunInto feeds the inputs and computes the outputs that out names. An entry that holds a tensor is written in place,
// without a copy, and must have the output's type and shape; the same *Tensor may be an input too (a cache that a
// scatter updates where it lies). A nil entry is replaced with a new tensor.
//
// Cancelling ctx stops the run after the operator at work.
func (s *Session) RunInto(ctx context.Context, in, out map[string]*Tensor) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.session == nil {
		return fmt.Errorf("model %q: the session is closed", s.Path)
	}
	if err := s.check(in, out); err != nil {
		return fmt.Errorf("model %q: %w", s.Path, err)
	}
	if err := s.run(ctx, in, out); err != nil {
		if c := ctx.Err(); c != nil {
			return c
		}
		return fmt.Errorf("model %q: %w", s.Path, err)
	}
	return nil
}

func (s *Session) run(ctx context.Context, in, out map[string]*Tensor) error {
	memory, err := memoryInfo()
	if err != nil {
		return err
	}
	var pin runtime.Pinner // the runtime keeps the addresses of the bytes until the values are freed
	defer pin.Unpin()
	values := map[*Tensor]unsafe.Pointer{}
	defer func() {
		for _, v := range values {
			freeValue(v)
		}
	}()
	value := func(t *Tensor) (unsafe.Pointer, error) {
		if v, ok := values[t]; ok {
			return v, nil
		}
		if len(t.Raw) > 0 {
			pin.Pin(&t.Raw[0])
		}
		v, err := wrap(memory, t)
		if err == nil {
			values[t] = v
		}
		return v, err
	}

	var inNames, outNames []cName
	var inValues, outValues []unsafe.Pointer
	for _, io := range s.inputs {
		t, ok := in[io.Name]
		if !ok {
			continue
		}
		v, err := value(t)
		if err != nil {
			return fmt.Errorf("input %q: %v: %w", io.Name, t, err)
		}
		inNames = append(inNames, s.names[io.Name])
		inValues = append(inValues, v)
	}
	var fresh []string // outputs that the runtime allocates, "" in the places of those it does not
	for _, io := range s.outputs {
		t, ok := out[io.Name]
		if !ok {
			continue
		}
		var v unsafe.Pointer
		name := io.Name
		if t != nil {
			if v, err = value(t); err != nil {
				return fmt.Errorf("output %q: %v: %w", io.Name, t, err)
			}
			name = ""
		}
		outNames = append(outNames, s.names[io.Name])
		outValues = append(outValues, v)
		fresh = append(fresh, name)
	}

	err = cancellable(ctx, func(opts runOptions) error {
		return run(s.handle, opts, inNames, inValues, outNames, outValues)
	})
	defer func() {
		for i, name := range fresh {
			if name != "" && outValues[i] != nil {
				freeValue(outValues[i])
			}
		}
	}()
	if err != nil {
		return fmt.Errorf("ONNX Runtime failed with inputs %s: %w", shapes(s.inputs, in), err)
	}
	for i, name := range fresh {
		if name == "" {
			continue
		}
		t, err := read(outValues[i])
		if err != nil {
			return fmt.Errorf("output %q: %w", name, err)
		}
		out[name] = t
	}
	return nil
}

// cancellable makes a run that stops when ctx ends.
func cancellable(ctx context.Context, run func(runOptions) error) error {
	opts, err := newRunOptions()
	if err != nil {
		return err
	}
	defer opts.free()
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		opts.terminate()
		close(stopped)
	})
	err = run(opts)
	if !stop() {
		<-stopped // opts must outlive the call
	}
	return err
}

// check finds what the runtime would describe less clearly, or not survive.
func (s *Session) check(in, out map[string]*Tensor) error {
	for name, t := range in {
		if err := s.checkInput(name, t); err != nil {
			return err
		}
	}
	for _, io := range s.inputs {
		if _, ok := in[io.Name]; !ok {
			return fmt.Errorf("input %q (%s) was not given", io.Name, io)
		}
	}
	if len(out) == 0 {
		return fmt.Errorf("no output was asked for; its outputs are %s", list(s.outputs))
	}
	for name, t := range out {
		if _, ok := s.Output(name); ok && t == nil {
			continue
		}
		if err := s.checkOutput(name, t); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) checkInput(name string, t *Tensor) error {
	io, ok := s.Input(name)
	if !ok {
		return fmt.Errorf("it has no input %q; its inputs are %s", name, list(s.inputs))
	}
	if t == nil {
		return fmt.Errorf("input %q: no tensor given", name)
	}
	if err := t.Check(); err != nil {
		return fmt.Errorf("input %q: %w", name, err)
	}
	if io.DType != t.DType {
		return fmt.Errorf("input %q: the model wants %s, got %v", name, typeName(io.DType), t)
	}
	return nil
}

func (s *Session) checkOutput(name string, t *Tensor) error {
	io, ok := s.Output(name)
	if !ok {
		return fmt.Errorf("it has no output %q; its outputs are %s", name, list(s.outputs))
	}
	if t == nil {
		return fmt.Errorf("output %q: no tensor given", name)
	}
	if err := t.Check(); err != nil {
		return fmt.Errorf("output %q: %w", name, err)
	}
	if io.DType != t.DType {
		return fmt.Errorf("output %q: the model gives %s, the tensor to write into is %v", name, typeName(io.DType), t)
	}
	return nil
}

// String shows the type and shape, with the names of dynamic dimensions.
func (io IO) String() string {
	dims := make([]string, len(io.Shape))
	for i, d := range io.Shape {
		switch {
		case d >= 0:
			dims[i] = fmt.Sprint(d)
		case i < len(io.Symbols) && io.Symbols[i] != "":
			dims[i] = io.Symbols[i]
		default:
			dims[i] = "?"
		}
	}
	return fmt.Sprintf("%s[%s]", typeName(io.DType), strings.Join(dims, ","))
}

func list(ios []IO) string {
	names := make([]string, len(ios))
	for i, io := range ios {
		names[i] = io.Name
	}
	return strings.Join(names, ", ")
}

// shapes lists what inputs were given; those of a numbered series with one type and shape, such as the caches of all layers,
// together.
func shapes(ios []IO, in map[string]*Tensor) string {
	const most = 8
	series := func(io IO) string { return io.Name[:strings.IndexAny(io.Name+"0", "0123456789")] }
	var out []string
	for i := 0; i < len(ios); {
		given := fmt.Sprint(in[ios[i].Name])
		next := i + 1
		for next < len(ios) && fmt.Sprint(in[ios[next].Name]) == given && series(ios[next]) == series(ios[i]) {
			next++
		}
		name := ios[i].Name
		if last := ios[next-1].Name; next-i > 1 {
			name += " … " + last
		}
		if len(out) == most {
			return fmt.Sprintf("%s and %d more", strings.Join(out, ", "), len(ios)-i)
		}
		out = append(out, name+" "+given)
		i = next
	}
	return strings.Join(out, ", ")
}

// root returns the innermost error: the binding's own words around it name its functions, not the user's things.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
