#!/bin/sh
# Builds transferlab-vision with OpenCV 4.6 (Debian 12, Ubuntu 24.04, Raspberry Pi OS 12):
#
#	sh edge/vision/transferlab-vision/build.sh OUT [DIR of another program that uses gocv]
#
# gocv's own flags would link every module of OpenCV, with 264 libraries behind them. With these only what is called
# is linked: a process that starts in 10 ms instead of half a second and takes a fifth of the memory. The
# packages are those of `task opencv`.
set -eu
out=${1:?usage: build.sh OUT [DIR]}
case $out in /*) ;; *) out=$(pwd)/$out ;; esac
cd "${2:-$(dirname "$0")}"
export CGO_ENABLED=1
export CGO_CPPFLAGS="-I${OPENCV_INCLUDE:-/usr/include/opencv4}"
export CGO_CXXFLAGS="-O2 -std=c++14 -ffunction-sections -fdata-sections"
export CGO_LDFLAGS="-Wl,--gc-sections -Wl,--as-needed -lopencv_core -lopencv_imgproc -lopencv_objdetect -lopencv_dnn -lopencv_calib3d -lopencv_features2d"
exec go build -tags opencv,customenv -o "$out" .
