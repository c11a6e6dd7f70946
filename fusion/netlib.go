//go:build netlib

package fusion

// #cgo LDFLAGS: -llapacke -lopenblas
import "C"

import (
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"
	netblas "gonum.org/v1/netlib/blas/netlib"
	netlapack "gonum.org/v1/netlib/lapack/netlib"
)

// With the tag netlib the system's OpenBLAS and LAPACKE take gonum's place (Debian: libopenblas-dev, liblapacke-dev).
func init() {
	blas64.Use(netblas.Implementation{})
	lapack64.Use(netlapack.Implementation{})
}
