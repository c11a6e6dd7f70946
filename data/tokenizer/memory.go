package tokenizer

import (
	"strings"
	"sync"
)

// memory keeps what has been made of words. The zero value is empty.
type memory[T any] struct {
	mu    sync.Mutex
	known map[string]T
}

// Words beyond these bounds are not kept, or push all others out.
const memoryWords, memoryBytes = 1 << 16, 256

// get returns what f makes of word, which must depend on nothing else.
func (m *memory[T]) get(word string, f func(string) T) T {
	m.mu.Lock()
	x, ok := m.known[word]
	m.mu.Unlock()
	if ok {
		return x
	}
	x = f(word)
	if len(word) > memoryBytes {
		return x
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil || len(m.known) >= memoryWords {
		m.known = make(map[string]T)
	}
	m.known[strings.Clone(word)] = x // a part of a text would keep all of it
	return x
}
