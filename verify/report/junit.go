package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"onnx-dha/verify"
)

// The elements of JUnit's XML, as Jenkins and GitLab read them: https://github.com/testmoapp/junitxml describes them.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Time     string       `xml:"time,attr,omitempty"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		Failure *junitFailure `xml:"failure,omitempty"`
		Skipped *junitSkipped `xml:"skipped,omitempty"`
		Output  string        `xml:"system-out,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
	junitSkipped struct {
		Message string `xml:"message,attr"`
	}
)

// JUnit writes the report as JUnit XML: a suite of gates, and a suite for each section with a case for each line.
func JUnit(w io.Writer, r *verify.Report) error {
	all := junitSuites{Name: "onnx-dha verify " + pair(r)}
	if r.Timing != nil {
		all.Time = fmt.Sprintf("%.3f", r.Timing.Total)
	}
	gates := junitSuite{Name: "gates"}
	for _, g := range r.Gates {
		c := junitCase{Name: fmt.Sprintf("%s %s", verify.Heading(g.Metric), bound(g)), Class: "gates." + g.Section}
		switch {
		case g.Unmeasured != "":
			c.Skipped = &junitSkipped{Message: g.Unmeasured}
		case !g.Passed:
			c.Failure = &junitFailure{Message: g.String(), Type: g.Metric, Text: g.String()}
		default:
			c.Output = g.String()
		}
		gates.add(c)
	}
	all.add(gates)
	for _, n := range sectionsOf(r) {
		s := junitSuite{Name: title(n.name)}
		for _, l := range n.section.Lines {
			c := junitCase{Name: strings.TrimSpace(l.Case + " " + l.Output), Class: n.name}
			switch {
			case !l.Passed():
				c.Failure = &junitFailure{Message: strings.Join(l.Broken, "; "), Type: "tolerance", Text: l.String()}
			default:
				c.Output = l.String()
			}
			s.add(c)
		}
		all.add(s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (s *junitSuite) add(c junitCase) {
	s.Tests++
	if c.Failure != nil {
		s.Failures++
	}
	if c.Skipped != nil {
		s.Skipped++
	}
	s.Cases = append(s.Cases, c)
}

func (a *junitSuites) add(s junitSuite) {
	a.Tests += s.Tests
	a.Failures += s.Failures
	a.Skipped += s.Skipped
	a.Suites = append(a.Suites, s)
}
