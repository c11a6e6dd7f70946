package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/internal/suggest"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// allProviders compares providers with one another.
const allProviders = "all"

func providerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "provider", Value: "cpu", Usage: "`EP`, the execution provider: " + strings.Join(ort.Providers(), ", ") + "; all compares those that there are with one another"},
		&cli.StringFlag{Name: "reference-provider", Usage: "`EP` of the original and the tied reference", DefaultText: "that of --provider"},
		&cli.IntFlag{Name: "device", Usage: "number `N` of the GPU"},
		&cli.StringSliceFlag{Name: "cuda-opt", Usage: "`KEY=VALUE`, an option of the CUDA provider, as often as needed; use_tf32 is 0 unless it is given"},
	}
}

func knownProvider(flag, value string) error {
	names := ort.Providers()
	for _, name := range names {
		if value == name {
			return nil
		}
	}
	return usageError("--%s %q%s want one of %s", flag, value, separator(suggest.DidYouMean(value, names)), strings.Join(names, ", "))
}

// sessionOptions are those of a provider. Comparisons want products in full precision.
func sessionOptions(c *cli.Context, provider string) (ort.Options, error) {
	o := ort.Options{Provider: provider, Threads: c.Int("threads"), Device: c.Int("device")}
	if provider == "cuda" {
		for _, pair := range c.StringSlice("cuda-opt") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || key == "" {
				return o, usageError("--cuda-opt %q; want KEY=VALUE", pair)
			}
			if o.ProviderOptions == nil {
				o.ProviderOptions = map[string]string{}
			}
			o.ProviderOptions[key] = value
		}
	}
	return ort.FullPrecision(o), nil
}

// providers compares providers where --provider all asks for it, and says which nodes another than the CPU leaves to it.
func providers(c *cli.Context, q verify.Request, rep *verify.Report) error {
	if c.String("provider") == allProviders {
		var wrong error
		if err := rep.Across(c.Context, q, func(provider string) ort.Options {
			o, err := sessionOptions(c, provider)
			if err != nil {
				wrong = err
			}
			return o
		}); err != nil {
			return err
		}
		if wrong != nil {
			return wrong
		}
	}
	for _, m := range []struct {
		what, path string
		o          ort.Options
	}{{"original", q.Original, *q.Reference}, {"rewritten", q.Rewritten, q.Session}} {
		if m.o.Provider == "cpu" {
			continue
		}
		p, err := verify.PlaceNodes(c.Context, m.what, m.path, m.o, q.Seed)
		if c.Context.Err() != nil {
			return c.Context.Err()
		}
		if err != nil {
			rep.Notes = append(rep.Notes, fmt.Sprintf("which nodes %s runs is not known: %v", m.o.Provider, err))
			continue
		}
		rep.Placement = append(rep.Placement, p)
	}
	return nil
}
