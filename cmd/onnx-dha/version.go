package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"onnx-dha/ort"
)

// version is set by the linker (make build).
var version string

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the versions of this program and of ONNX Runtime",
		Description: "Also says which ONNX Runtime library the other commands would load, or why there is none.",
		Flags:       common(reportOutput, ortLibFlag()),
		Action:      printVersion,
	}
}

func ortLibFlag() cli.Flag {
	return &cli.StringFlag{Name: "ort-lib", Usage: "ONNX Runtime library, or the folder it is in: `PATH` (default: " + ort.Env + ", .ort, the system's)", TakesFile: true}
}

// versions is what the version command says.
type versions struct {
	Version     string `json:"version"`
	Go          string `json:"go"`
	Platform    string `json:"platform"`
	Runtime     string `json:"onnxruntime,omitempty"`
	RuntimePath string `json:"onnxruntime_library,omitempty"`
	Problem     string `json:"onnxruntime_problem,omitempty"`
}

func printVersion(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	v := versions{Version: toolVersion(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	lib, err := ort.Find(c.String("ort-lib"))
	if err == nil {
		err = ort.Open(lib)
	}
	if err == nil {
		v.Runtime, v.RuntimePath = ort.Version(), lib
	} else {
		v.Problem = err.Error()
	}
	return emit(c, c.String("output"), v, func(w io.Writer, _ bool) error {
		fmt.Fprintf(w, "%s %s (%s, %s)\n", program, v.Version, v.Go, v.Platform)
		if v.Problem != "" {
			_, err := fmt.Fprintf(w, "ONNX Runtime: %s\n", v.Problem)
			return err
		}
		_, err := fmt.Fprintf(w, "ONNX Runtime %s (%s)\n", v.Runtime, v.RuntimePath)
		return err
	})
}

// toolVersion is the linker's version, else the module's, else the commit that was compiled.
func toolVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "-dirty"
		}
	}
	if revision == "" {
		return "development"
	}
	return revision + modified
}
