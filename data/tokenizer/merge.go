package tokenizer

import (
	"container/heap"
	"iter"
	"strings"
)

// symbol is a part of a word that merges join.
type symbol struct {
	id         int64 // -1 when it is no token
	start, end int   // bytes of the word, for joiners that go by text
	frozen     bool  // takes no part in merges

	previous, next int // neighbours, -1 at the ends; next is used when a merge has used the symbol up
}

const used = -2

// joiner returns the token that two neighbours make and the cost of that merge; ok is false when they make none.
type joiner func(left, right symbol) (id int64, cost float64, ok bool)

// merge joins neighbours, the cheapest pair first and the leftmost of equals, until no pair makes a token. It takes
// O(n log n) joins for n symbols.
func merge(symbols []symbol, join joiner) []symbol {
	var queue candidates
	propose := func(left, right int) {
		if left < 0 || right < 0 || symbols[left].frozen || symbols[right].frozen {
			return
		}
		if id, cost, ok := join(symbols[left], symbols[right]); ok {
			heap.Push(&queue, candidate{cost, left, right, symbols[left].id, symbols[right].id, id})
		}
	}
	for i := range symbols {
		symbols[i].previous, symbols[i].next = i-1, i+1
	}
	if len(symbols) > 0 {
		symbols[len(symbols)-1].next = -1
	}
	for i := 1; i < len(symbols); i++ {
		propose(i-1, i)
	}
	for queue.Len() > 0 {
		c := heap.Pop(&queue).(candidate)
		l, r := &symbols[c.left], &symbols[c.right]
		if l.next != c.right || l.id != c.leftID || r.id != c.rightID {
			continue // one of the two has been merged with another since
		}
		l.id, l.end, l.next = c.id, r.end, r.next
		r.next = used
		if l.next >= 0 {
			symbols[l.next].previous = c.left
		}
		propose(l.previous, c.left)
		propose(c.left, l.next)
	}
	out := symbols[:0]
	for _, s := range symbols {
		if s.next != used {
			out = append(out, s)
		}
	}
	return out
}

// candidate is a merge that was possible when it was proposed.
type candidate struct {
	cost            float64
	left, right     int   // indices of the symbols
	leftID, rightID int64 // what they were
	id              int64 // what they make
}

type candidates []candidate

func (c candidates) Len() int { return len(c) }

func (c candidates) Less(i, j int) bool {
	if c[i].cost != c[j].cost {
		return c[i].cost < c[j].cost
	}
	return c[i].left < c[j].left
}

func (c candidates) Swap(i, j int) { c[i], c[j] = c[j], c[i] }

func (c *candidates) Push(x any) { *c = append(*c, x.(candidate)) }

func (c *candidates) Pop() any {
	last := len(*c) - 1
	x := (*c)[last]
	*c = (*c)[:last]
	return x
}

// wordStarts cuts a text where a mark of words follows something else. When no token has such a place inside, no merge
// crosses it, so that the parts can be merged one by one, and remembered: texts have far more words than different ones.
func wordStarts(text, mark string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for text != "" {
			end := crossing(text, mark)
			if end < 0 {
				end = len(text)
			}
			if !yield(text[:end]) {
				return
			}
			text = text[end:]
		}
	}
}

// crossing returns where a mark first follows something else, or -1.
func crossing(text, mark string) int {
	head := len(text) - len(strings.TrimLeft(text, mark))
	if at := strings.Index(text[head:], mark); at >= 0 {
		return head + at
	}
	return -1
}
