package ort

// The binding (github.com/yalue/onnxruntime_go) loads the library, owns the environment and creates sessions. Tensors
// and runs go through abi.c instead, because the binding
//
//   - copies an output that it allocates with one byte per element when the type is not a Go type, which cuts float16 and
//     bfloat16 outputs short, and refuses outputs of rank 0;
//   - refuses empty tensors of those types as inputs, and an empty cache is where every decode begins;
//   - reads the inputs and outputs of a model only by loading it a second time, and without the names of dynamic
//     dimensions.

// #cgo linux LDFLAGS: -ldl
// #include <stdlib.h>
// #include "abi.h"
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unsafe"

	binding "github.com/yalue/onnxruntime_go"
)

// apiVersion is the version of the C interface that the binding is compiled against; a runtime of minor version n
// offers interfaces 1 to n.
const apiVersion = 24

// probe returns the version of the ONNX Runtime library at path (a file, or a name for the system's loader). With keep
// it stays loaded and serves this package.
func probe(path string, keep bool) (string, error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	var msg *C.char
	k := C.int(0)
	if keep {
		k = 1
	}
	v := C.dha_probe(p, apiVersion, k, &msg)
	if v == nil {
		defer C.free(unsafe.Pointer(msg))
		return "", errors.New(C.GoString(msg))
	}
	defer C.free(unsafe.Pointer(v))
	return C.GoString(v), nil
}

// failure turns a status into an error and releases it.
func failure(status unsafe.Pointer) error {
	if status == nil {
		return nil
	}
	s := C.dha_message(status)
	defer C.free(unsafe.Pointer(s))
	return errors.New(strings.TrimSpace(C.GoString(s)))
}

// sessionHandle digs the runtime's session out of the binding's, which does not give it out. A release of the binding
// that renames its fields is met with an error here, not with a stray pointer.
func sessionHandle(s *binding.DynamicAdvancedSession) (unsafe.Pointer, error) {
	v := reflect.ValueOf(s).Elem()
	for _, field := range []string{"s", "ortSession"} {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct || !v.FieldByName(field).IsValid() {
			return nil, fmt.Errorf("this release of onnxruntime_go keeps its session elsewhere: no field %q in %v", field, v.Type())
		}
		v = v.FieldByName(field)
	}
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil, fmt.Errorf("this release of onnxruntime_go keeps its session elsewhere: ortSession is %v", v.Type())
	}
	return v.UnsafePointer(), nil
}

// memoryInfo is the description of ordinary memory that the environment keeps.
func memoryInfo() (unsafe.Pointer, error) {
	m, err := binding.GetMemoryInfo()
	return unsafe.Pointer(m), err
}

// describe lists the inputs or outputs of a session.
func describe(session unsafe.Pointer, outputs bool) ([]IO, error) {
	out := C.int(0)
	if outputs {
		out = 1
	}
	var n C.size_t
	if err := failure(C.dha_io_count(session, out, &n)); err != nil {
		return nil, err
	}
	ios := make([]IO, int(n))
	for i := range ios {
		var name *C.char
		if err := failure(C.dha_io_name(session, out, C.size_t(i), &name)); err != nil {
			return nil, err
		}
		ios[i].Name = C.GoString(name)
		C.free(unsafe.Pointer(name))
		var isTensor, typ C.int
		var rank C.size_t
		if err := failure(C.dha_io_rank(session, out, C.size_t(i), &isTensor, &typ, &rank)); err != nil {
			return nil, err
		}
		if isTensor == 0 {
			continue // a sequence, map or optional: DType stays UNDEFINED
		}
		ios[i].DType = dtypeOf(int(typ))
		if rank == 0 {
			continue
		}
		shape := make([]int64, int(rank))
		symbols := make([]*C.char, int(rank))
		st := C.dha_io_shape(session, out, C.size_t(i), (*C.int64_t)(unsafe.Pointer(&shape[0])), &symbols[0], rank)
		if err := failure(st); err != nil {
			return nil, err
		}
		ios[i].Shape = shape
		ios[i].Symbols = make([]string, int(rank))
		for d, s := range symbols {
			ios[i].Symbols[d] = C.GoString(s)
			C.free(unsafe.Pointer(s))
		}
	}
	return ios, nil
}

// wrap makes a runtime value over the bytes of a tensor, which the caller has pinned.
func wrap(memory unsafe.Pointer, t *Tensor) (unsafe.Pointer, error) {
	var data unsafe.Pointer
	if len(t.Raw) > 0 {
		data = unsafe.Pointer(&t.Raw[0])
	}
	var shape *C.int64_t
	if len(t.Shape) > 0 {
		shape = (*C.int64_t)(unsafe.Pointer(&t.Shape[0]))
	}
	var v unsafe.Pointer
	st := C.dha_tensor_new(memory, data, C.size_t(len(t.Raw)), shape, C.size_t(len(t.Shape)), C.int(runtimeType(t.DType)), &v)
	return v, failure(st)
}

// read copies a tensor that a run has produced.
func read(value unsafe.Pointer) (*Tensor, error) {
	var isTensor, typ C.int
	var rank C.size_t
	if err := failure(C.dha_value_rank(value, &isTensor, &typ, &rank)); err != nil {
		return nil, err
	}
	if isTensor == 0 {
		return nil, fmt.Errorf("it is a sequence, map or optional; want a tensor")
	}
	t := &Tensor{DType: dtypeOf(int(typ)), Shape: make([]int64, int(rank))}
	if bitsOf(t.DType) == 0 {
		return nil, fmt.Errorf("its element type %v has no fixed size; want numbers or booleans", t.DType)
	}
	if rank > 0 {
		if err := failure(C.dha_value_shape(value, (*C.int64_t)(unsafe.Pointer(&t.Shape[0])), rank)); err != nil {
			return nil, err
		}
	}
	var data unsafe.Pointer
	var n C.size_t
	if err := failure(C.dha_value_data(value, &data, &n)); err != nil {
		return nil, err
	}
	t.Raw = make([]byte, int(n))
	if n > 0 {
		copy(t.Raw, unsafe.Slice((*byte)(data), int(n)))
	}
	return t, nil
}

func freeValue(v unsafe.Pointer) { C.dha_value_free(v) }

// runOptions is one run's handle for cancelling it.
type runOptions struct{ p unsafe.Pointer }

func newRunOptions() (runOptions, error) {
	var o runOptions
	err := failure(C.dha_run_options_new(&o.p))
	return o, err
}

func (o runOptions) terminate() error { return failure(C.dha_run_options_terminate(o.p)) }
func (o runOptions) free()            { C.dha_run_options_free(o.p) }

// cName keeps a name in C memory for the life of a session.
type cName = *C.char

func newName(s string) cName { return C.CString(s) }
func freeName(n cName)       { C.free(unsafe.Pointer(n)) }

// run calls the session; entries of out that are nil are allocated by the runtime.
func run(session unsafe.Pointer, opts runOptions, inNames []cName, in []unsafe.Pointer, outNames []cName, out []unsafe.Pointer) error {
	var inN **C.char
	var inV *unsafe.Pointer
	if len(in) > 0 {
		inN, inV = &inNames[0], &in[0]
	}
	return failure(C.dha_run(session, opts.p, inN, inV, C.size_t(len(in)), &outNames[0], C.size_t(len(out)), &out[0]))
}

func newBinding(session unsafe.Pointer) (b unsafe.Pointer, err error) {
	err = failure(C.dha_binding_new(session, &b))
	return b, err
}

func freeBinding(b unsafe.Pointer) {
	C.dha_binding_clear(b)
	C.dha_binding_free(b)
}

func bindValue(b unsafe.Pointer, side int, name cName, value unsafe.Pointer) error {
	return failure(C.dha_binding_set(b, C.int(side), name, value))
}

func placeOutput(b unsafe.Pointer, name cName, memory unsafe.Pointer) error {
	return failure(C.dha_binding_place(b, name, memory))
}

func runBinding(session unsafe.Pointer, opts runOptions, b unsafe.Pointer) error {
	return failure(C.dha_binding_run(session, opts.p, b))
}

// boundOutputs fills values with new handles of the outputs of a binding, in the order in which they were bound first.
func boundOutputs(b unsafe.Pointer, values []unsafe.Pointer) error {
	if len(values) == 0 {
		return nil
	}
	return failure(C.dha_binding_outputs(b, &values[0], C.size_t(len(values))))
}

// newMemory describes the memory of an execution provider.
func newMemory(provider string, device int) (m unsafe.Pointer, err error) {
	name := C.CString(provider)
	defer C.free(unsafe.Pointer(name))
	err = failure(C.dha_memory_new(name, C.int(device), &m))
	return m, err
}

func freeMemory(m unsafe.Pointer) { C.dha_memory_free(m) }

// availableProviders lists the execution providers of the library by the runtime's own names.
func availableProviders() ([]string, error) {
	var names **C.char
	var n C.int
	if err := failure(C.dha_providers(&names, &n)); err != nil {
		return nil, err
	}
	defer C.dha_providers_free(names, n)
	out := make([]string, int(n))
	for i, s := range unsafe.Slice(names, int(n)) {
		out[i] = C.GoString(s)
	}
	return out, nil
}

// loads tries to load a shared library, by its path or by a name for the system's loader. It returns what the loader
// says against it, empty when it loads.
func loads(name string) string {
	p := C.CString(name)
	defer C.free(unsafe.Pointer(p))
	msg := C.dha_loads(p)
	if msg == nil {
		return ""
	}
	defer C.free(unsafe.Pointer(msg))
	return C.GoString(msg)
}

// Trim gives memory that the runtime has freed back to the system. The C library keeps it otherwise, for the next model.
func Trim() { C.dha_trim() }
