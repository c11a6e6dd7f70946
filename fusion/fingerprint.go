package fusion

import "regexp"

var fingerprintForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func isFingerprint(s string) bool { return fingerprintForm.MatchString(s) }
