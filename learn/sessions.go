package learn

import "slices"

// sessionBytes bounds what sessions that wait for their next use hold: a new one costs less than the passes over the data
// that it is made for, and the copies of a large model would not all fit into memory.
const sessionBytes = 512 << 20

// sessions are copies of the model in the runtime that may be used again, those used last at the end.
type sessions struct {
	limit int64
	held  []session
}

type session struct {
	key string
	use held
}

// held is a copy of the model, or what wraps one.
type held interface {
	close() error
	size() int64
}

// size is about what a copy holds in memory: its weights, its sums and their results.
func (p *pass) size() int64 { return p.bytes }

// kept returns the session called key, opened when it is not there. Others are closed when all together hold too much.
func kept[T held](s *sessions, key string, open func() (T, error)) (T, error) {
	at := slices.IndexFunc(s.held, func(x session) bool { return x.key == key })
	if at >= 0 {
		x := s.held[at]
		s.held = append(slices.Delete(s.held, at, at+1), x)
		return x.use.(T), nil
	}
	for len(s.held) > 0 && s.total() > s.limit {
		s.held[0].use.close()
		s.held = slices.Delete(s.held, 0, 1)
	}
	t, err := open()
	if err == nil {
		s.held = append(s.held, session{key, t})
	}
	return t, err
}

func (s *sessions) total() (n int64) {
	for _, x := range s.held {
		n += x.use.size()
	}
	return n
}

func (s *sessions) close() {
	for _, x := range s.held {
		x.use.close()
	}
	s.held = nil
}
