package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/transferlab/transferlab/services/autoscaler/drive"
	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// Drivers.
const (
	DriverProcess = "process"
	DriverDocker  = "docker"
	DriverEC2     = "ec2"
)

// Config of the autoscaler.
type Config struct {
	Policy     string        `help:"Who decides: predictive, backlog-per-worker, source (as published) or fixed." env:"TRANSFERLAB_AUTOSCALER_POLICY" default:"predictive"`
	Floor      int           `help:"Least instances." env:"TRANSFERLAB_AUTOSCALER_FLOOR" default:"0"`
	Cap        int           `help:"Most instances, those included that boot or drain." env:"TRANSFERLAB_AUTOSCALER_CAP" default:"19"`
	Wait       time.Duration `help:"Acceptable wait of a clip for a worker, at the 95th percentile." env:"TRANSFERLAB_AUTOSCALER_WAIT" default:"10s"`
	Warmup     time.Duration `name:"warm-up" help:"How long an instance takes to boot." env:"TRANSFERLAB_AUTOSCALER_WARM_UP" default:"45s"`
	Patience   time.Duration `help:"An instance whose worker has not come by then is given up." env:"TRANSFERLAB_AUTOSCALER_PATIENCE" default:"5m"`
	CoolDown   time.Duration `name:"cool-down" help:"How long fewer instances must have been enough before any is drained." env:"TRANSFERLAB_AUTOSCALER_COOL_DOWN" default:"1m"`
	Hysteresis float64       `help:"By what share of the present instances they must be fewer." env:"TRANSFERLAB_AUTOSCALER_HYSTERESIS" default:"0.15"`
	Count      int           `help:"Instances of the policy fixed." env:"TRANSFERLAB_AUTOSCALER_COUNT" default:"1"`
	Every      time.Duration `help:"How often to look." env:"TRANSFERLAB_AUTOSCALER_EVERY" default:"500ms"`

	Driver    string        `help:"What workers run on: process, docker or ec2." env:"TRANSFERLAB_AUTOSCALER_DRIVER" default:"process"`
	Owner     string        `help:"Marks the instances of this autoscaler, and begins the names of its workers." env:"TRANSFERLAB_AUTOSCALER_OWNER_NAME" default:"auto"`
	StopGrace time.Duration `name:"stop-grace" help:"From the request to end to the kill, of processes and containers." env:"TRANSFERLAB_AUTOSCALER_STOP_GRACE" default:"75s"`

	Command []string `sep:"none" help:"process, docker: the program that is a worker, and each of its arguments. For processes it is this program's own detector if not given, for containers the image's own." env:"TRANSFERLAB_AUTOSCALER_COMMAND"`
	State   string   `help:"process: directory of the lock." env:"TRANSFERLAB_AUTOSCALER_STATE" type:"path" default:"transferlab-autoscaler"`

	Socket  string            `name:"docker-socket" help:"docker: the engine's socket." env:"TRANSFERLAB_AUTOSCALER_DOCKER_SOCKET" default:"/var/run/docker.sock"`
	Image   string            `help:"docker: image of a worker." env:"TRANSFERLAB_AUTOSCALER_IMAGE"`
	Network string            `help:"docker: network of the workers." env:"TRANSFERLAB_AUTOSCALER_NETWORK"`
	Env     map[string]string `name:"worker-env" help:"process, docker: variables of the workers, NAME=VALUE; NAME= takes this process's variable of that name and NAME=$OTHER that of another: passwords belong into the environment." env:"TRANSFERLAB_AUTOSCALER_WORKER_ENV"`

	Template string `name:"launch-template" help:"ec2: id or name of the launch template, whose user-data start a worker that calls itself by the instance's id." env:"TRANSFERLAB_AUTOSCALER_LAUNCH_TEMPLATE"`
	Version  string `name:"launch-template-version" help:"ec2: version of it; the default one if not given." env:"TRANSFERLAB_AUTOSCALER_LAUNCH_TEMPLATE_VERSION"`
	Region   string `help:"ec2: region." env:"TRANSFERLAB_AUTOSCALER_REGION"`
	Profile  string `help:"ec2: profile of the AWS configuration." env:"TRANSFERLAB_AUTOSCALER_PROFILE"`
}

// DefaultConfig is what the flags default to.
func DefaultConfig() Config {
	p := scale.DefaultPolicy()
	return Config{
		Policy: p.Name, Floor: p.Floor, Cap: p.Cap, Wait: p.Wait, Warmup: p.Warmup, Patience: p.Patience, CoolDown: p.CoolDown,
		Hysteresis: p.Hysteresis, Count: p.Count, Every: 500 * time.Millisecond,
		Driver: DriverProcess, Owner: "auto", StopGrace: 75 * time.Second, State: "transferlab-autoscaler", Socket: "/var/run/docker.sock",
	}
}

func (c *Config) policy() scale.Policy {
	return scale.Policy{
		Name: c.Policy, Floor: c.Floor, Cap: c.Cap, Wait: c.Wait, Warmup: c.Warmup, Patience: c.Patience,
		CoolDown: c.CoolDown, Hysteresis: c.Hysteresis, Count: c.Count,
	}
}

func (c *Config) process() drive.ProcessConfig {
	return drive.ProcessConfig{Owner: c.Owner, Command: c.Command, State: c.State, Env: c.workerEnv(), Grace: c.StopGrace}
}

// workerEnv is what workers find in their environment.
func (c *Config) workerEnv() map[string]string {
	env := map[string]string{}
	for name, value := range c.Env {
		if value == "" {
			value = os.Getenv(name)
		} else if other, found := strings.CutPrefix(value, "$"); found {
			value = os.Getenv(other)
		}
		env[name] = value
	}
	return env
}

func (c *Config) docker() drive.DockerConfig {
	return drive.DockerConfig{Owner: c.Owner, Socket: c.Socket, Image: c.Image, Command: c.Command, Env: c.workerEnv(), Network: c.Network, Grace: c.StopGrace}
}

func (c *Config) ec2() drive.EC2Config {
	return drive.EC2Config{Owner: c.Owner, Region: c.Region, Profile: c.Profile, Template: c.Template, Version: c.Version}
}

// Validate reports every fault.
func (c *Config) Validate() error {
	errs := []error{c.policy().Validate()}
	if c.Every < 100*time.Millisecond || c.Every > time.Minute {
		errs = append(errs, fmt.Errorf("--every: %s, want 100ms to 1m", c.Every))
	}
	switch c.Driver {
	case DriverProcess:
		p := c.process()
		if len(p.Command) == 0 {
			p.Command = []string{"this program"}
		}
		errs = append(errs, p.Validate())
	case DriverDocker:
		d := c.docker()
		errs = append(errs, d.Validate())
	case DriverEC2:
		e := c.ec2()
		errs = append(errs, e.Validate())
	default:
		errs = append(errs, fmt.Errorf("--driver: %q, want %s, %s or %s", c.Driver, DriverProcess, DriverDocker, DriverEC2))
	}
	return errors.Join(errs...)
}

// closer is a driver that was opened here.
type closer interface {
	Driver
	Close(ctx context.Context) error
}

func (c *Config) open(ctx context.Context, log *slog.Logger) (closer, error) {
	switch c.Driver {
	case DriverDocker:
		d := c.docker()
		d.Log = log
		return drive.OpenDocker(ctx, d)
	case DriverEC2:
		e := c.ec2()
		e.Log = log
		return drive.OpenEC2(ctx, e)
	}
	p := c.process()
	p.Log = log
	if len(p.Command) == 0 {
		program, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		p.Command = []string{program, "service", "detector"}
	}
	return drive.OpenProcess(ctx, p)
}
