// Package services is the list of the lab's services. Adding one is a package
// and a line here.
package services

import (
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/services/autoscaler"
	"github.com/transferlab/transferlab/services/collector"
	"github.com/transferlab/transferlab/services/detector"
	"github.com/transferlab/transferlab/services/edgerunner"
	"github.com/transferlab/transferlab/services/gateway"
	"github.com/transferlab/transferlab/services/prober"
	"github.com/transferlab/transferlab/services/provisioner"
	"github.com/transferlab/transferlab/services/s3loader"
	"github.com/transferlab/transferlab/services/scheduler"
	"github.com/transferlab/transferlab/services/swarmrunner"
)

// All returns every service, with its default configuration.
func All() []node.Service {
	return []node.Service{
		autoscaler.Service(),
		collector.Service(),
		detector.Service(),
		edgerunner.Service(),
		gateway.Service(),
		prober.Service(),
		provisioner.Service(),
		s3loader.Service(),
		scheduler.Service(),
		swarmrunner.Service(),
	}
}
