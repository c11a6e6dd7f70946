package ort

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"unsafe"
)

// Binding holds the inputs and outputs of a session from run to run, so that what stays the same is given once. A decode
// loop binds the memory of its caches: one buffer as a past and as the present that is written into it, or two buffers in
// turn where the present is a longer copy. Nothing is copied to or from Go's memory then.
//
// A binding belongs to one goroutine, and has to be closed before its session.
type Binding struct {
	s      *Session
	handle unsafe.Pointer
	device unsafe.Pointer // description of the execution provider's memory
	bound  [2]map[string]*pinned
	order  []string // of the outputs, as the runtime lists them
}

// Sides of a binding, as the runtime's functions number them.
const (
	inputSide  = 0
	outputSide = 1
)

// pinned keeps the bytes of a bound tensor where they are. The tensor is nil when the bytes are the runtime's.
type pinned struct {
	tensor *Tensor
	pin    runtime.Pinner
}

// deviceMemory is what the runtime calls the memory of each execution provider.
var deviceMemory = map[string]string{"": "Cpu", "cpu": "Cpu", "cuda": "Cuda"}

// Bind makes a binding with nothing in it.
func (s *Session) Bind() (*Binding, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.session == nil {
		return nil, fmt.Errorf("model %q: the session is closed", s.Path)
	}
	b := &Binding{s: s, bound: [2]map[string]*pinned{{}, {}}}
	var err error
	if b.handle, err = newBinding(s.handle); err == nil {
		b.device, err = newMemory(deviceMemory[strings.ToLower(s.provider)], s.device)
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("model %q: %w", s.Path, err)
	}
	return b, nil
}

// Close frees the binding and lets go of the tensors. Closing twice is harmless.
func (b *Binding) Close() {
	if b.handle != nil {
		freeBinding(b.handle)
	}
	if b.device != nil {
		freeMemory(b.device)
	}
	b.handle, b.device = nil, nil
	for _, side := range b.bound {
		for name, p := range side {
			p.pin.Unpin()
			delete(side, name)
		}
	}
}

// Input gives an input its tensor. Every run reads its bytes, as they are then, until another is given.
func (b *Binding) Input(name string, t *Tensor) error { return b.set(inputSide, name, t) }

// Output gives an output the tensor that every run writes, until another is given. Its shape must be the one that the run
// comes to. Its bytes may be those of an input which the model updates in place.
func (b *Binding) Output(name string, t *Tensor) error { return b.set(outputSide, name, t) }

func (b *Binding) set(side int, name string, t *Tensor) error {
	if old := b.bound[side][name]; old != nil && old.tensor == t && t != nil {
		return nil
	}
	if b.handle == nil {
		return fmt.Errorf("model %q: the binding is closed", b.s.Path)
	}
	check := b.s.checkInput
	if side == outputSide {
		check = b.s.checkOutput
	}
	if err := check(name, t); err != nil {
		return fmt.Errorf("model %q: %w", b.s.Path, err)
	}
	memory, err := memoryInfo()
	if err != nil {
		return err
	}
	p := &pinned{tensor: t}
	if len(t.Raw) > 0 {
		p.pin.Pin(&t.Raw[0])
	}
	v, err := wrap(memory, t)
	if err == nil {
		err = bindValue(b.handle, side, b.s.names[name], v)
		freeValue(v) // the binding has a handle of its own
	}
	if err != nil {
		p.pin.Unpin()
		return fmt.Errorf("model %q: binding %q to %v: %w", b.s.Path, name, t, err)
	}
	b.keep(side, name, p)
	return nil
}

// Place leaves an output to the runtime: the next run makes it in the memory of the execution provider, in whatever shape
// it comes to. It has to be placed again, or bound, before the run after that.
func (b *Binding) Place(output string) error { return b.place(output, b.device) }

// PlaceHost is Place in ordinary memory, from which Fetch can read it.
func (b *Binding) PlaceHost(output string) error {
	memory, err := memoryInfo()
	if err != nil {
		return err
	}
	return b.place(output, memory)
}

func (b *Binding) place(output string, memory unsafe.Pointer) error {
	if err := b.check(outputSide, output); err != nil {
		return err
	}
	if err := placeOutput(b.handle, b.s.names[output], memory); err != nil {
		return fmt.Errorf("model %q: output %q: %w", b.s.Path, output, err)
	}
	b.keep(outputSide, output, &pinned{})
	return nil
}

// Pass makes outputs of the last run inputs of the next, where they lie. The pairs are output, input.
func (b *Binding) Pass(pairs [][2]string) error {
	values, err := b.computed()
	if err != nil {
		return err
	}
	defer freeValues(values)
	for _, p := range pairs {
		v := values[p[0]]
		if v == nil {
			return fmt.Errorf("model %q: output %q is not bound, and cannot be passed to %q", b.s.Path, p[0], p[1])
		}
		if err := b.check(inputSide, p[1]); err != nil {
			return err
		}
		if err := bindValue(b.handle, inputSide, b.s.names[p[1]], v); err != nil {
			return fmt.Errorf("model %q: passing %q to %q: %w", b.s.Path, p[0], p[1], err)
		}
		next := &pinned{}
		if t := b.bound[outputSide][p[0]].tensor; t != nil {
			next.tensor = t
			if len(t.Raw) > 0 {
				next.pin.Pin(&t.Raw[0])
			}
		}
		b.keep(inputSide, p[1], next)
	}
	return nil
}

// Fetch copies an output of the last run that was placed in ordinary memory.
func (b *Binding) Fetch(output string) (*Tensor, error) {
	values, err := b.computed()
	if err != nil {
		return nil, err
	}
	defer freeValues(values)
	v := values[output]
	if v == nil {
		return nil, fmt.Errorf("model %q: output %q is not bound", b.s.Path, output)
	}
	t, err := read(v)
	if err != nil {
		return nil, fmt.Errorf("model %q: output %q: %w", b.s.Path, output, err)
	}
	return t, nil
}

// computed returns handles of the outputs of the last run by name. They are the caller's to free.
func (b *Binding) computed() (map[string]unsafe.Pointer, error) {
	if b.handle == nil {
		return nil, fmt.Errorf("model %q: the binding is closed", b.s.Path)
	}
	list := make([]unsafe.Pointer, len(b.order))
	if err := boundOutputs(b.handle, list); err != nil {
		return nil, fmt.Errorf("model %q: %w", b.s.Path, err)
	}
	values := map[string]unsafe.Pointer{}
	for i, v := range list {
		if v != nil {
			values[b.order[i]] = v
		}
	}
	return values, nil
}

func freeValues(values map[string]unsafe.Pointer) {
	for _, v := range values {
		freeValue(v)
	}
}

// check finds what the runtime would not survive.
func (b *Binding) check(side int, name string) error {
	if b.handle == nil {
		return fmt.Errorf("model %q: the binding is closed", b.s.Path)
	}
	ios, what := b.s.inputs, "input"
	if side == outputSide {
		ios, what = b.s.outputs, "output"
	}
	if _, ok := find(ios, name); !ok {
		return fmt.Errorf("model %q: it has no %s %q; its %ss are %s", b.s.Path, what, name, what, list(ios))
	}
	return nil
}

func (b *Binding) keep(side int, name string, p *pinned) {
	if old := b.bound[side][name]; old != nil {
		old.pin.Unpin()
	} else if side == outputSide {
		b.order = append(b.order, name)
	}
	b.bound[side][name] = p
}

// Run computes the bound outputs from the bound inputs. Outputs that are not bound are not given out; at least one has to
// be. Cancelling ctx stops the run after the operator at work.
func (b *Binding) Run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s := b.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.session == nil:
		return fmt.Errorf("model %q: the session is closed", s.Path)
	case b.handle == nil:
		return fmt.Errorf("model %q: the binding is closed", s.Path)
	case len(b.order) == 0:
		return fmt.Errorf("model %q: no output is bound; its outputs are %s", s.Path, list(s.outputs))
	}
	for _, io := range s.inputs {
		if b.bound[inputSide][io.Name] == nil {
			return fmt.Errorf("model %q: input %q (%s) is not bound", s.Path, io.Name, io)
		}
	}
	err := cancellable(ctx, func(opts runOptions) error { return runBinding(s.handle, opts, b.handle) })
	if err == nil {
		return nil
	}
	if c := ctx.Err(); c != nil {
		return c
	}
	given := map[string]*Tensor{}
	for name, p := range b.bound[inputSide] {
		given[name] = p.tensor
	}
	return fmt.Errorf("model %q: ONNX Runtime failed with inputs %s: %w", s.Path, shapes(s.inputs, given), err)
}
