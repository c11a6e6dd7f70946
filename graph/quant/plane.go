package quant

import (
	"encoding/binary"

	"onnx-dha/graph"
)

// plane says how the numbers of a matrix lie in one tensor: element row·r + col·c, of some bits.
type plane struct {
	dtype    dataType // of the tensor
	dims     []int64
	bits     int  // of an element; may be fewer than those of the tensor's type, several elements to a byte
	row, col int  // strides in elements
	high     bool // the first of two elements in a byte is in the high bits
}

// elements is how many elements of bits the tensor holds.
func (p plane) elements() int {
	n := 1
	for _, d := range p.dims {
		n *= int(d)
	}
	return n * graph.ElementBits(p.dtype) / p.bits
}

// size is the bytes of the tensor.
func (p plane) size() int {
	n := 1
	for _, d := range p.dims {
		n *= int(d)
	}
	return (n*graph.ElementBits(p.dtype) + 7) / 8
}

// fits reports whether the tensor has the elements of a matrix of the given size.
func (p plane) fits(rows, cols int) bool {
	return rows > 0 && cols > 0 && (rows-1)*p.row+(cols-1)*p.col < p.elements()
}

// shift is the place of element i in its byte.
func (p plane) shift(i int) int {
	per := 8 / p.bits
	at := i % per
	if p.high {
		at = per - 1 - at
	}
	return at * p.bits
}

// read returns the codes of a matrix, row by row.
func (p plane) read(raw []byte, rows, cols int) []uint16 {
	out := make([]uint16, rows*cols)
	mask := uint16(1)<<p.bits - 1
	for r := range rows {
		line := out[r*cols : (r+1)*cols]
		for c := range line {
			i := r*p.row + c*p.col
			switch p.bits {
			case 8:
				line[c] = uint16(raw[i])
			case 16:
				line[c] = binary.LittleEndian.Uint16(raw[2*i:])
			default:
				line[c] = uint16(raw[i*p.bits/8]>>p.shift(i)) & mask
			}
		}
	}
	return out
}

// write makes the bytes of the tensor; elements that no entry of the matrix has are 0.
func (p plane) write(codes []uint16, rows, cols int) []byte {
	raw := make([]byte, p.size())
	for r := range rows {
		line := codes[r*cols : (r+1)*cols]
		for c, x := range line {
			i := r*p.row + c*p.col
			switch p.bits {
			case 8:
				raw[i] = byte(x)
			case 16:
				binary.LittleEndian.PutUint16(raw[2*i:], x)
			default:
				raw[i*p.bits/8] |= byte(x) << p.shift(i)
			}
		}
	}
	return raw
}

// numbers returns the entries of a matrix of floats or integers.
func (p plane) numbers(t *graph.Tensor, rows, cols int) ([]float64, error) {
	x, err := t.Float64s()
	if err != nil {
		return nil, err
	}
	out := make([]float64, rows*cols)
	for r := range rows {
		for c := range cols {
			out[r*cols+c] = x[r*p.row+c*p.col]
		}
	}
	return out, nil
}
