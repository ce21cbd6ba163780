//go:build !opencv || !cgo

package main

import (
	"errors"

	"github.com/transferlab/transferlab/edge/vision/internal/nets"
)

func engine() string { return "" }

func open(*nets.Model, int) (network, error) {
	return nil, errors.New("this transferlab-vision was built without OpenCV: run `task opencv`")
}
