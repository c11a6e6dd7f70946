package verify

// Shape returns the shape that an input has in a case. It fails where a dimension has no size in the case.
func (s *Signature) Shape(in Input, c Case) ([]int64, error) {
	env, err := s.env(c)
	if err != nil {
		return nil, err
	}
	return s.shape(in, c, env)
}
