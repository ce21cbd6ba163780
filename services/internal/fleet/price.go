package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// PricesAsOf says what the estimates rest on.
const PricesAsOf = "on-demand list prices for Linux as published in 2025, without tax, storage and data transfer"

// addressPrice is what a public IPv4 address costs in USD an hour, everywhere.
const addressPrice = 0.005

// prices are USD an hour. Only what is known is listed: an estimate that rests
// on a guess is worse than none.
var prices = map[string]map[string]float64{
	"us-east-1": us, "us-east-2": us, "us-west-2": us,
	"eu-west-1": {
		"t3.nano": 0.0057, "t3.micro": 0.0114, "t3.small": 0.0228, "t3.medium": 0.0456, "t3.large": 0.0912,
		"t4g.nano": 0.0046, "t4g.micro": 0.0092, "t4g.small": 0.0184, "t4g.medium": 0.0368,
		"m5.large": 0.107, "m5.xlarge": 0.214, "c5.large": 0.096, "c5.xlarge": 0.192,
	},
	"eu-central-1": {
		"t3.nano": 0.006, "t3.micro": 0.012, "t3.small": 0.024, "t3.medium": 0.048, "t3.large": 0.096,
		"m5.large": 0.115, "m5.xlarge": 0.23, "c5.large": 0.097, "c5.xlarge": 0.194,
	},
	"eu-west-2":      {"t3.nano": 0.0059, "t3.micro": 0.0118, "t3.small": 0.0236, "t3.medium": 0.0472, "t3.large": 0.0944},
	"eu-north-1":     {"t3.nano": 0.0054, "t3.micro": 0.0108, "t3.small": 0.0216, "t3.medium": 0.0432, "t3.large": 0.0864},
	"ca-central-1":   {"t3.nano": 0.0058, "t3.micro": 0.0116, "t3.small": 0.0232, "t3.medium": 0.0464, "t3.large": 0.0928},
	"us-west-1":      {"t3.nano": 0.0062, "t3.micro": 0.0124, "t3.small": 0.0248, "t3.medium": 0.0496, "t3.large": 0.0992},
	"ap-northeast-1": {"t3.nano": 0.0068, "t3.micro": 0.0136, "t3.small": 0.0272, "t3.medium": 0.0544, "t3.large": 0.1088},
	"ap-southeast-1": {"t3.nano": 0.0066, "t3.micro": 0.0132, "t3.small": 0.0264, "t3.medium": 0.0528, "t3.large": 0.1056},
	"ap-southeast-2": {"t3.nano": 0.0066, "t3.micro": 0.0132, "t3.small": 0.0264, "t3.medium": 0.0528, "t3.large": 0.1056},
	"sa-east-1":      {"t3.nano": 0.0084, "t3.micro": 0.0168, "t3.small": 0.0336, "t3.medium": 0.0672, "t3.large": 0.1344},
}

var us = map[string]float64{
	"t3.nano": 0.0052, "t3.micro": 0.0104, "t3.small": 0.0208, "t3.medium": 0.0416, "t3.large": 0.0832,
	"t3a.nano": 0.0047, "t3a.micro": 0.0094, "t3a.small": 0.0188, "t3a.medium": 0.0376,
	"t4g.nano": 0.0042, "t4g.micro": 0.0084, "t4g.small": 0.0168, "t4g.medium": 0.0336,
	"m5.large": 0.096, "m5.xlarge": 0.192, "m6i.large": 0.096, "m6i.xlarge": 0.192,
	"c5.large": 0.085, "c5.xlarge": 0.17, "c6i.large": 0.085, "c6i.xlarge": 0.17, "c5n.large": 0.108, "c5n.xlarge": 0.216,
}

// Estimate is what instances cost, as far as that is known.
type Estimate struct {
	USD     float64  `json:"usd"`               // of the types that are known
	Unknown []string `json:"unknown,omitempty"` // type in region, not in USD
}

// add counts instances of a type that run for a while; the service bills each
// for a minute at least.
func (e *Estimate) add(region, kind string, count int, ran time.Duration) {
	if ran <= 0 {
		return
	}
	hours := max(ran, time.Minute).Hours() * float64(count)
	e.USD += addressPrice * hours
	price, known := prices[region][kind]
	if !known {
		if name := kind + " in " + region; !slices.Contains(e.Unknown, name) {
			e.Unknown = append(e.Unknown, name)
			slices.Sort(e.Unknown)
		}
		return
	}
	e.USD += price * hours
}

func (e Estimate) String() string {
	text := fmt.Sprintf("about %.4f USD", e.USD)
	if len(e.Unknown) > 0 {
		text += ", and what " + strings.Join(e.Unknown, ", ") + " costs: unknown here"
	}
	return text
}
