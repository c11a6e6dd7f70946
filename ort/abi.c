#include "abi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef _WIN32
#include <windows.h>
static void *open_library(const char *path) { return (void *)LoadLibraryA(path); }
static void *find_symbol(void *lib, const char *name) { return (void *)GetProcAddress((HMODULE)lib, name); }
static void close_library(void *lib) { FreeLibrary((HMODULE)lib); }
static const char *why(void) { return "LoadLibrary refused it"; }
#else
#include <dlfcn.h>
static void *open_library(const char *path) { return dlopen(path, RTLD_LAZY | RTLD_LOCAL); }
static void *find_symbol(void *lib, const char *name) { return dlsym(lib, name); }
static void close_library(void *lib) { dlclose(lib); }
static const char *why(void) {
  const char *s = dlerror();
  return s ? s : "unknown reason";
}
#endif

// Places in the function table.
enum {
  GET_ERROR_MESSAGE = 2,
  RUN = 9,
  SESSION_GET_INPUT_COUNT = 30,
  SESSION_GET_OUTPUT_COUNT = 31,
  SESSION_GET_INPUT_TYPE_INFO = 33,
  SESSION_GET_OUTPUT_TYPE_INFO = 34,
  SESSION_GET_INPUT_NAME = 36,
  SESSION_GET_OUTPUT_NAME = 37,
  CREATE_RUN_OPTIONS = 39,
  RUN_OPTIONS_SET_TERMINATE = 46,
  CREATE_TENSOR_WITH_DATA = 49,
  GET_TENSOR_MUTABLE_DATA = 51,
  CAST_TYPE_INFO_TO_TENSOR_INFO = 55,
  GET_ONNX_TYPE_FROM_TYPE_INFO = 56,
  GET_TENSOR_ELEMENT_TYPE = 60,
  GET_DIMENSIONS_COUNT = 61,
  GET_DIMENSIONS = 62,
  GET_SYMBOLIC_DIMENSIONS = 63,
  GET_TENSOR_TYPE_AND_SHAPE = 65,
  GET_VALUE_TYPE = 67,
  CREATE_MEMORY_INFO = 68,
  ALLOCATOR_FREE = 76,
  GET_DEFAULT_ALLOCATOR = 78,
  RELEASE_STATUS = 93,
  RELEASE_MEMORY_INFO = 94,
  RELEASE_VALUE = 96,
  RELEASE_RUN_OPTIONS = 97,
  RELEASE_TYPE_INFO = 98,
  RELEASE_TENSOR_INFO = 99,
  GET_AVAILABLE_PROVIDERS = 125,
  RELEASE_AVAILABLE_PROVIDERS = 126,
  RUN_WITH_BINDING = 133,
  CREATE_IO_BINDING = 134,
  RELEASE_IO_BINDING = 135,
  BIND_INPUT = 136,
  BIND_OUTPUT = 137,
  BIND_OUTPUT_TO_DEVICE = 138,
  GET_BOUND_OUTPUT_VALUES = 140,
  CLEAR_BOUND_INPUTS = 141,
  CLEAR_BOUND_OUTPUTS = 142,
  GET_TENSOR_SIZE_IN_BYTES = 318,
};

enum { ONNX_TYPE_TENSOR = 1, DEVICE_ALLOCATOR = 0, MEMORY_DEFAULT = 0 };

typedef struct {
  const void *const *(*get_api)(uint32_t version);
  const char *(*get_version)(void);
} api_base;

static const void *const *api;

// CALL(n, result type, parameter types) is entry n of the table as a function.
#define CALL(n, result, ...) ((result(*)(__VA_ARGS__))(api[n]))

static char *text(const char *a, const char *b) {
  size_t n = strlen(a) + strlen(b) + 1;
  char *s = malloc(n);
  if (s) snprintf(s, n, "%s%s", a, b);
  return s;
}

char *dha_probe(const char *path, uint32_t api_version, int keep, char **err) {
  *err = NULL;
  void *lib = open_library(path);
  if (!lib) {
    *err = text("it is not a library that this system can load: ", why());
    return NULL;
  }
  const api_base *(*get_base)(void) = (const api_base *(*)(void))find_symbol(lib, "OrtGetApiBase");
  const api_base *base = get_base ? get_base() : NULL;
  if (!base) {
    *err = text("it is not ONNX Runtime: it has no OrtGetApiBase", "");
    close_library(lib);
    return NULL;
  }
  char *version = text(base->get_version(), "");
  // The runtime prints a complaint of its own when it is asked for a version it lacks, so ask only to use it.
  if (keep) {
    api = base->get_api(api_version);
    if (!api) {
      *err = text("it is too old: ONNX Runtime ", version);
      free(version);
      close_library(lib);
      return NULL;
    }
    return version;
  }
  close_library(lib);
  return version;
}

char *dha_message(void *status) {
  char *s = text(CALL(GET_ERROR_MESSAGE, const char *, const void *)(status), "");
  CALL(RELEASE_STATUS, void, void *)(status);
  return s;
}

void *dha_run(void *session, void *run_options, const char *const *in_names, void *const *in, size_t n_in,
              const char *const *out_names, size_t n_out, void **out) {
  return CALL(RUN, void *, void *, const void *, const char *const *, const void *const *, size_t, const char *const *,
              size_t, void **)(session, run_options, in_names, (const void *const *)in, n_in, out_names, n_out, out);
}

void *dha_run_options_new(void **out) { return CALL(CREATE_RUN_OPTIONS, void *, void **)(out); }
void *dha_run_options_terminate(void *o) { return CALL(RUN_OPTIONS_SET_TERMINATE, void *, void *)(o); }
void dha_run_options_free(void *o) { CALL(RELEASE_RUN_OPTIONS, void, void *)(o); }

void *dha_binding_new(void *session, void **out) { return CALL(CREATE_IO_BINDING, void *, void *, void **)(session, out); }
void dha_binding_free(void *b) { CALL(RELEASE_IO_BINDING, void, void *)(b); }

void *dha_binding_set(void *b, int output, const char *name, void *value) {
  return CALL(output ? BIND_OUTPUT : BIND_INPUT, void *, void *, const char *, const void *)(b, name, value);
}

void *dha_binding_place(void *b, const char *name, const void *memory_info) {
  return CALL(BIND_OUTPUT_TO_DEVICE, void *, void *, const char *, const void *)(b, name, memory_info);
}

void dha_binding_clear(void *b) {
  CALL(CLEAR_BOUND_INPUTS, void, void *)(b);
  CALL(CLEAR_BOUND_OUTPUTS, void, void *)(b);
}

void *dha_binding_run(void *session, void *run_options, void *b) {
  return CALL(RUN_WITH_BINDING, void *, void *, const void *, const void *)(session, run_options, b);
}

void *dha_binding_outputs(void *b, void **values, size_t n) {
  void *alloc = NULL;
  void **all = NULL;
  size_t have = 0;
  void *st = CALL(GET_DEFAULT_ALLOCATOR, void *, void **)(&alloc);
  if (!st) st = CALL(GET_BOUND_OUTPUT_VALUES, void *, const void *, void *, void ***, size_t *)(b, alloc, &all, &have);
  if (st) return st;
  for (size_t i = 0; i < have; i++) {
    if (i < n)
      values[i] = all[i];
    else
      dha_value_free(all[i]);
  }
  return all ? CALL(ALLOCATOR_FREE, void *, void *, void *)(alloc, all) : NULL;
}

void *dha_memory_new(const char *name, int id, void **out) {
  return CALL(CREATE_MEMORY_INFO, void *, const char *, int, int, int, void **)(name, DEVICE_ALLOCATOR, id, MEMORY_DEFAULT, out);
}
void dha_memory_free(void *m) { CALL(RELEASE_MEMORY_INFO, void, void *)(m); }

void *dha_tensor_new(void *memory_info, void *data, size_t bytes, const int64_t *shape, size_t rank, int type,
                     void **out) {
  return CALL(CREATE_TENSOR_WITH_DATA, void *, const void *, void *, size_t, const int64_t *, size_t, int, void **)(
      memory_info, data, bytes, shape, rank, type, out);
}

void dha_value_free(void *value) { CALL(RELEASE_VALUE, void, void *)(value); }

void *dha_value_rank(void *value, int *is_tensor, int *type, size_t *rank) {
  int kind = 0;
  *is_tensor = 0;
  void *st = CALL(GET_VALUE_TYPE, void *, const void *, int *)(value, &kind);
  if (st || kind != ONNX_TYPE_TENSOR) return st;
  *is_tensor = 1;
  void *info = NULL;
  st = CALL(GET_TENSOR_TYPE_AND_SHAPE, void *, const void *, void **)(value, &info);
  if (st) return st;
  st = CALL(GET_TENSOR_ELEMENT_TYPE, void *, const void *, int *)(info, type);
  if (!st) st = CALL(GET_DIMENSIONS_COUNT, void *, const void *, size_t *)(info, rank);
  CALL(RELEASE_TENSOR_INFO, void, void *)(info);
  return st;
}

void *dha_value_shape(void *value, int64_t *shape, size_t rank) {
  void *info = NULL;
  void *st = CALL(GET_TENSOR_TYPE_AND_SHAPE, void *, const void *, void **)(value, &info);
  if (st) return st;
  st = CALL(GET_DIMENSIONS, void *, const void *, int64_t *, size_t)(info, shape, rank);
  CALL(RELEASE_TENSOR_INFO, void, void *)(info);
  return st;
}

void *dha_value_data(void *value, void **data, size_t *bytes) {
  void *st = CALL(GET_TENSOR_SIZE_IN_BYTES, void *, const void *, size_t *)(value, bytes);
  if (st) return st;
  return CALL(GET_TENSOR_MUTABLE_DATA, void *, void *, void **)(value, data);
}

void *dha_io_count(void *session, int output, size_t *n) {
  return CALL(output ? SESSION_GET_OUTPUT_COUNT : SESSION_GET_INPUT_COUNT, void *, const void *, size_t *)(session, n);
}

void *dha_io_name(void *session, int output, size_t i, char **name) {
  void *alloc = NULL;
  char *s = NULL;
  void *st = CALL(GET_DEFAULT_ALLOCATOR, void *, void **)(&alloc);
  if (st) return st;
  st = CALL(output ? SESSION_GET_OUTPUT_NAME : SESSION_GET_INPUT_NAME, void *, const void *, size_t, void *, char **)(
      session, i, alloc, &s);
  if (st) return st;
  *name = text(s, "");
  return CALL(ALLOCATOR_FREE, void *, void *, void *)(alloc, s);
}

static void *io_info(void *session, int output, size_t i, void **type_info) {
  return CALL(output ? SESSION_GET_OUTPUT_TYPE_INFO : SESSION_GET_INPUT_TYPE_INFO, void *, const void *, size_t,
              void **)(session, i, type_info);
}

void *dha_io_rank(void *session, int output, size_t i, int *is_tensor, int *type, size_t *rank) {
  void *info = NULL;
  int kind = 0;
  *is_tensor = 0;
  void *st = io_info(session, output, i, &info);
  if (st) return st;
  st = CALL(GET_ONNX_TYPE_FROM_TYPE_INFO, void *, const void *, int *)(info, &kind);
  if (!st && kind == ONNX_TYPE_TENSOR) {
    const void *tensor = NULL; // owned by info
    *is_tensor = 1;
    st = CALL(CAST_TYPE_INFO_TO_TENSOR_INFO, void *, const void *, const void **)(info, &tensor);
    if (!st) st = CALL(GET_TENSOR_ELEMENT_TYPE, void *, const void *, int *)(tensor, type);
    if (!st) st = CALL(GET_DIMENSIONS_COUNT, void *, const void *, size_t *)(tensor, rank);
  }
  CALL(RELEASE_TYPE_INFO, void, void *)(info);
  return st;
}

void *dha_io_shape(void *session, int output, size_t i, int64_t *shape, char **symbols, size_t rank) {
  void *info = NULL;
  const void *tensor = NULL;
  void *st = io_info(session, output, i, &info);
  if (st) return st;
  const char **names = calloc(rank ? rank : 1, sizeof *names);
  st = CALL(CAST_TYPE_INFO_TO_TENSOR_INFO, void *, const void *, const void **)(info, &tensor);
  if (!st) st = CALL(GET_DIMENSIONS, void *, const void *, int64_t *, size_t)(tensor, shape, rank);
  if (!st && names) st = CALL(GET_SYMBOLIC_DIMENSIONS, void *, const void *, const char **, size_t)(tensor, names, rank);
  for (size_t d = 0; !st && d < rank; d++) symbols[d] = text(names && names[d] ? names[d] : "", "");
  free(names);
  CALL(RELEASE_TYPE_INFO, void, void *)(info);
  return st;
}

void *dha_providers(char ***names, int *n) { return CALL(GET_AVAILABLE_PROVIDERS, void *, char ***, int *)(names, n); }

void dha_providers_free(char **names, int n) {
  void *st = CALL(RELEASE_AVAILABLE_PROVIDERS, void *, char **, int)(names, n);
  if (st) CALL(RELEASE_STATUS, void, void *)(st);
}

char *dha_loads(const char *path) {
  void *lib = open_library(path);
  if (!lib) return text(why(), "");
  close_library(lib);
  return NULL;
}

void dha_trim(void) {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}
