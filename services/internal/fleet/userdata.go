package fleet

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxUserData is EC2's limit before encoding.
const maxUserData = 16 << 10

// userData is the script that an instance of a site runs when it starts. It is
// the same for all of a site's instances, byte for byte, also when an
// interrupted launch is repeated: a launch with other parameters would be
// refused.
func (p *plan) userData(site string) (string, error) {
	access := p.access
	env := []string{
		"TRANSFERLAB_NATS=" + shellQuote(access.URL),
		"TRANSFERLAB_NATS_USER=" + shellQuote(access.User),
		"TRANSFERLAB_NATS_PASSWORD=" + shellQuote(access.Password),
	}
	if !isZero(p.Run) {
		env = append(env, "TRANSFERLAB_RUN="+shellQuote(p.Run.String()))
	}
	protocol := "=https"
	if u, err := url.Parse(p.Spec.Agent.URL); err == nil && u.Scheme == "http" {
		protocol = "=http" // Validate allows it on loopback alone
	}
	minutes := strconv.Itoa(int((p.Lifetime + time.Minute - 1) / time.Minute))

	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("#!/bin/bash")
	line("# transferlab: an agent of a fleet.")
	line("set -euo pipefail")
	line("umask 077")
	line("# Whatever becomes of the lab, the instance ends itself: it terminates when it shuts down.")
	line("shutdown -h +%s", minutes)
	line(`root="${TRANSFERLAB_ROOT:-/opt/transferlab}"`)
	line(`imds="${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}"`)
	line(`mkdir -p "$root"`)
	line(`ask() { curl --fail --silent --show-error --noproxy '*' --max-time 10 --retry 10 --retry-delay 1 --retry-connrefused "$@"; }`)
	line(`token=$(ask -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' "$imds/latest/api/token")`)
	line(`index=$(ask -H "X-aws-ec2-metadata-token: $token" "$imds/latest/meta-data/ami-launch-index")`)
	line(`case "$index" in '' | *[!0-9]*) echo "launch index $index" >&2; exit 1 ;; esac`)
	line(`curl --fail --silent --show-error --location --proto %s --proto-redir %s --retry 10 --retry-delay 2 --retry-connrefused --max-time 900 --max-filesize 1000000000 --output "$root/transferlab.part" --url %s`,
		shellQuote(protocol), shellQuote(protocol), shellQuote(p.Spec.Agent.URL))
	line(`printf '%%s  %%s\n' %s "$root/transferlab.part" | sha256sum --check --status || { echo 'the program has another SHA-256' >&2; exit 1; }`, shellQuote(p.Spec.Agent.SHA256))
	line(`chmod 0700 "$root/transferlab.part"`)
	line(`mv "$root/transferlab.part" "$root/transferlab"`)
	if access.CA != "" {
		line(`printf '%%s' %s >"$root/ca.pem"`, shellQuote(access.CA))
	}
	line(`printf '%%s' %s >"$root/env"`, shellQuote(strings.Join(env, "\n")+"\n"))
	run := []string{
		"#!/bin/bash", "set -a", `. "${0%/*}/env"`, `[ ! -e "${0%/*}/ca.pem" ] || TRANSFERLAB_NATS_CA="${0%/*}/ca.pem"`,
		fmt.Sprintf(`exec "${0%%/*}/transferlab" service %s --site %s --name %s-"$1" --placement ec2`,
			shellQuote(p.Service), shellQuote(site), shellQuote(agentPrefix(p.ID, site))),
	}
	line(`printf '%%s' %s >"$root/run"`, shellQuote(strings.Join(run, "\n")+"\n"))
	line(`chmod 0700 "$root/run"`)
	line(`if [ -d /run/systemd/system ] && [ -z "${TRANSFERLAB_ROOT:-}" ]; then`)
	line(`  systemd-run --unit=transferlab --property=Restart=always --property=RestartSec=3 "$root/run" "$index"`)
	line(`else`)
	line(`  nohup setsid "$root/run" "$index" >"$root/log" 2>&1 </dev/null &`)
	line(`fi`)

	script := b.String()
	if strings.ContainsRune(script, 0) {
		return "", fmt.Errorf("user-data of site %s: a value holds a zero byte", site)
	}
	if len(script) > maxUserData {
		return "", fmt.Errorf("user-data of site %s: %d bytes, EC2 allows %d: the certificate authority of the bus is too long", site, len(script), maxUserData)
	}
	return script, nil
}

// redacted is the script as it may be shown.
func (p *plan) redacted(site string) (string, error) {
	shown := *p
	shown.access.Password = "(hidden)"
	return shown.userData(site)
}

// shellQuote returns a word that a POSIX shell reads as s, whatever s holds
// but a zero byte.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func isZero(id [16]byte) bool { return id == [16]byte{} }
