// The few entries of ONNX Runtime's C interface that the binding does not reach (see abi.go for which and why).
//
// The interface is a table of function pointers that only grows: an entry never moves, the runtime's own source asserts
// the offsets at compile time. So an entry is named here by its place in the table, and no header of another project
// is needed. Types the caller never looks into are void.
#ifndef ONNX_DHA_ORT_ABI_H
#define ONNX_DHA_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

// dha_probe says whether a shared library is ONNX Runtime: it returns the library's version string, or NULL with a
// message in *err that the caller frees. keep says whether the library stays loaded; dha_probe then also remembers the
// function table of the given interface version for the calls below, and fails when the library is too old for it.
char *dha_probe(const char *path, uint32_t api_version, int keep, char **err);

// A status is NULL for success. dha_message copies its text and releases it.
char *dha_message(void *status);

void *dha_run(void *session, void *run_options, const char *const *in_names, void *const *in, size_t n_in,
              const char *const *out_names, size_t n_out, void **out);
void *dha_run_options_new(void **out);
void *dha_run_options_terminate(void *run_options);
void dha_run_options_free(void *run_options);

// A binding keeps the values of a session's inputs and outputs from run to run. dha_binding_set binds an input (output !=
// 0: an output) to a value, dha_binding_place leaves an output to the runtime, to be made in the memory described, and
// dha_binding_outputs gives out new handles of the first n bound outputs, in the order in which they were bound first.
void *dha_binding_new(void *session, void **out);
void dha_binding_free(void *binding);
void *dha_binding_set(void *binding, int output, const char *name, void *value);
void *dha_binding_place(void *binding, const char *name, const void *memory_info);
void dha_binding_clear(void *binding);
void *dha_binding_run(void *session, void *run_options, void *binding);
void *dha_binding_outputs(void *binding, void **values, size_t n);

// dha_memory_new describes the memory of an execution provider by its name ("Cpu", "Cuda") and the number of the device.
void *dha_memory_new(const char *name, int id, void **out);
void dha_memory_free(void *memory_info);

// dha_tensor_new wraps bytes of the caller, who keeps them alive and in place until dha_value_free.
void *dha_tensor_new(void *memory_info, void *data, size_t bytes, const int64_t *shape, size_t rank, int type,
                     void **out);
void dha_value_free(void *value);

// dha_value_rank, dha_value_shape and dha_value_data describe a tensor that a run has produced.
void *dha_value_rank(void *value, int *is_tensor, int *type, size_t *rank);
void *dha_value_shape(void *value, int64_t *shape, size_t rank);
void *dha_value_data(void *value, void **data, size_t *bytes);

// dha_io_* describe input (output != 0: output) number i of a session. Dimensions that are not fixed are -1; their
// names, "" when there is none, are copies that the caller frees, as is the name.
void *dha_io_count(void *session, int output, size_t *n);
void *dha_io_name(void *session, int output, size_t i, char **name);
void *dha_io_rank(void *session, int output, size_t i, int *is_tensor, int *type, size_t *rank);
void *dha_io_shape(void *session, int output, size_t i, int64_t *shape, char **symbols, size_t rank);

// dha_providers lists the execution providers that the library was built with; dha_providers_free frees the list.
void *dha_providers(char ***names, int *n);
void dha_providers_free(char **names, int n);

// dha_loads tries to load a shared library, which it lets go again: NULL, or the loader's words, which the caller frees.
char *dha_loads(const char *path);

// dha_trim gives memory that C code has freed back to the system, where the C library keeps such.
void dha_trim(void);

#endif
