package ort

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	binding "github.com/yalue/onnxruntime_go"
)

// provider is one execution provider.
type provider struct {
	// is what the runtime calls it in profiles and in its list of providers.
	is     string
	append func(*binding.SessionOptions, Options) error
	// library is the file, beside the runtime, that holds it; empty when it is part of the runtime.
	library string
	// setting is the option that turns single-precision products into coarser ones, and off its value for not.
	setting, off string
}

// providers is the table of execution providers, by the name that Options.Provider has.
var providers = map[string]provider{
	"cpu":      {is: "CPUExecutionProvider", append: func(*binding.SessionOptions, Options) error { return nil }},
	"cuda":     {is: "CUDAExecutionProvider", append: appendCUDA, library: "onnxruntime_providers_cuda", setting: "use_tf32", off: "0"},
	"tensorrt": {is: "TensorrtExecutionProvider", append: appendTensorRT, library: "onnxruntime_providers_tensorrt"},
	"coreml": {is: "CoreMLExecutionProvider", append: func(s *binding.SessionOptions, o Options) error {
		return s.AppendExecutionProviderCoreMLV2(o.ProviderOptions)
	}},
	"directml": {is: "DmlExecutionProvider", append: func(s *binding.SessionOptions, o Options) error {
		return s.AppendExecutionProviderDirectML(o.Device)
	}},
	"openvino": {is: "OpenVINOExecutionProvider", library: "onnxruntime_providers_openvino", append: func(s *binding.SessionOptions, o Options) error {
		return s.AppendExecutionProviderOpenVINO(o.ProviderOptions)
	}},
	"webgpu":  {is: "WebGpuExecutionProvider", append: byName("WebGPU")},
	"xnnpack": {is: "XnnpackExecutionProvider", append: byName("XNNPACK")},
}

// Providers lists the names that Options.Provider accepts, the commonest first.
func Providers() []string {
	return []string{"cpu", "cuda", "tensorrt", "openvino", "directml", "coreml", "webgpu", "xnnpack"}
}

// Available lists the providers that the loaded library was built with. Whether their own libraries can be loaded shows
// when a session is made.
func Available() ([]string, error) {
	if Version() == "" {
		return nil, fmt.Errorf("the ONNX Runtime library is not loaded; call ort.Open first")
	}
	built, err := availableProviders()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range Providers() {
		if slices.Contains(built, providers[name].is) {
			out = append(out, name)
		}
	}
	return out, nil
}

// FullPrecision returns the options with which a provider computes single-precision products in single precision (no
// TF32); options of the caller's own go before it.
func FullPrecision(o Options) Options {
	p := providers[providerName(o)]
	if p.setting == "" {
		return o
	}
	all := map[string]string{p.setting: p.off}
	maps.Copy(all, o.ProviderOptions)
	o.ProviderOptions = all
	return o
}

func providerName(o Options) string { return cmp.Or(strings.ToLower(o.Provider), "cpu") }

// appendProvider adds the provider that the options name, with a message about what is missing where it fails.
func appendProvider(opts *binding.SessionOptions, o Options) error {
	name := providerName(o)
	p, ok := providers[name]
	if !ok {
		return fmt.Errorf("execution provider %q is not known; want one of %s", o.Provider, strings.Join(Providers(), ", "))
	}
	if built, err := Available(); err == nil && !slices.Contains(built, name) {
		return fmt.Errorf("execution provider %s: this ONNX Runtime library, %s, was built without it; it has %s",
			name, library.path, strings.Join(built, ", "))
	}
	if err := p.append(opts, o); err != nil {
		// What the runtime says of a library that does not load seldom names the one that is missing.
		if why := p.unloadable(); why != "" {
			return fmt.Errorf("execution provider %s: %s", name, why)
		}
		return fmt.Errorf("execution provider %s: %s (device %d, options %v)", name, cause(err), o.Device, o.ProviderOptions)
	}
	return nil
}

// unloadable says what of a provider's libraries is missing; empty when they load, or nothing can be said.
func (p provider) unloadable() string {
	if p.library == "" || runtime.GOOS != "linux" || !strings.ContainsRune(library.path, filepath.Separator) {
		return ""
	}
	dir := filepath.Dir(library.path)
	for _, name := range []string{"onnxruntime_providers_shared", p.library} {
		path := filepath.Join(dir, "lib"+name+".so")
		missing, err := Missing(path)
		switch {
		case err != nil:
			return fmt.Sprintf("%v; %s", err, cudaWayOut(name))
		case len(missing) > 0:
			return fmt.Sprintf("%s cannot be loaded: %s; install what is missing (CUDA 13 and cuDNN 9 for the package that `make runtime-cuda` installs), "+
				"or name its folder in LD_LIBRARY_PATH", path, describeMissing(missing))
		}
	}
	return ""
}

// cudaWayOut says where the provider's own library comes from.
func cudaWayOut(name string) string {
	if strings.Contains(name, "tensorrt") || strings.Contains(name, "openvino") {
		return "it has to be of the same release as ONNX Runtime, and beside it"
	}
	return "`make runtime-cuda` puts it beside ONNX Runtime, of the same release"
}

// appendCUDA adds the CUDA execution provider.
func appendCUDA(opts *binding.SessionOptions, o Options) error {
	cuda, err := binding.NewCUDAProviderOptions()
	if err != nil {
		return err
	}
	defer cuda.Destroy()
	// Either call may be the first to load the provider's libraries.
	if err := cuda.Update(deviceOptions(o)); err != nil {
		return err
	}
	return opts.AppendExecutionProviderCUDA(cuda)
}

// appendTensorRT adds the TensorRT execution provider.
func appendTensorRT(opts *binding.SessionOptions, o Options) error {
	trt, err := binding.NewTensorRTProviderOptions()
	if err != nil {
		return err
	}
	defer trt.Destroy()
	if err := trt.Update(deviceOptions(o)); err != nil {
		return err
	}
	return opts.AppendExecutionProviderTensorRT(trt)
}

// deviceOptions are the caller's, and the device.
func deviceOptions(o Options) map[string]string {
	all := map[string]string{"device_id": fmt.Sprint(o.Device)}
	maps.Copy(all, o.ProviderOptions)
	return all
}

// byName adds a provider that the runtime knows by a name.
func byName(name string) func(*binding.SessionOptions, Options) error {
	return func(opts *binding.SessionOptions, o Options) error {
		return opts.AppendExecutionProvider(name, o.ProviderOptions)
	}
}

// cause cuts the place in the runtime's source off a message of its own.
func cause(err error) string {
	msg := root(err).Error()
	if _, after, ok := strings.Cut(msg, " : FAIL : "); ok {
		return after
	}
	return msg
}
