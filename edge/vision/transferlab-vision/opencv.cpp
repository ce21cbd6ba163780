//go:build opencv && cgo

// What gocv does not have, or has wrong: its HOGDefaultPeopleDetector reads memory that has
// been freed, its detectors return no scores, and it cannot set the number of
// threads.

#include "opencv.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/objdetect.hpp>

namespace {

struct detector {
	cv::HOGDescriptor hog;
	std::unique_ptr<cv::CascadeClassifier> cascade;
};

void say(char *fault, int size, const char *what) { std::snprintf(fault, size, "%s", what); }

} // namespace

extern "C" {

// OpenCV throws through gocv, which does not catch: all that can be done is to say it on one line and
// go, before Go fills pages with where its goroutines were.
void vision_last_words(void) {
	std::set_terminate([] {
		std::string what = "an exception of no known kind";
		try {
			if (std::current_exception()) std::rethrow_exception(std::current_exception());
		} catch (const std::exception &e) {
			what = e.what();
		} catch (...) {
		}
		std::replace(what.begin(), what.end(), '\n', ' ');
		std::fprintf(stderr, "what(): %s\n", what.c_str());
		std::fflush(stderr);
		_exit(3);
	});
}

void vision_threads(int n) { cv::setNumThreads(n); }

void *vision_hog(char *fault, int size) {
	try {
		auto d = std::make_unique<detector>();
		d->hog.setSVMDetector(cv::HOGDescriptor::getDefaultPeopleDetector());
		return d.release();
	} catch (const std::exception &e) {
		say(fault, size, e.what());
		return nullptr;
	}
}

void *vision_cascade(const char *xml, int length, char *fault, int size) {
	try {
		auto d = std::make_unique<detector>();
		cv::FileStorage file(std::string(xml, length), cv::FileStorage::READ | cv::FileStorage::MEMORY | cv::FileStorage::FORMAT_XML);
		d->cascade = std::make_unique<cv::CascadeClassifier>();
		if (!d->cascade->read(file.getFirstTopLevelNode()) || d->cascade->empty()) {
			say(fault, size, "OpenCV makes no cascade of it");
			return nullptr;
		}
		return d.release();
	} catch (const std::exception &e) {
		say(fault, size, e.what());
		return nullptr;
	}
}

void vision_close(void *p) { delete static_cast<detector *>(p); }

int vision_detect(void *p, unsigned char *pixels, int width, int height,
	vision_box *boxes, int most, char *fault, int size) {
	try {
		auto d = static_cast<detector *>(p);
		cv::Mat picture(height, width, CV_8UC3, pixels), grey;
		cv::cvtColor(picture, grey, cv::COLOR_RGB2GRAY);
		std::vector<cv::Rect> found;
		std::vector<double> weights;
		// A weight is a distance from a border, of no fixed scale: the logistic
		// function makes a score of it that is one half on the border.
		double scale = 1;
		if (d->cascade) {
			std::vector<int> levels;
			cv::equalizeHist(grey, grey);
			d->cascade->detectMultiScale(grey, found, levels, weights, 1.1, 4, 0, cv::Size(), cv::Size(), true);
			scale = 0.5;
		} else if (width >= 64 && height >= 128) {
			d->hog.detectMultiScale(grey, found, weights, 0, cv::Size(8, 8), cv::Size(16, 16), 1.05, 2);
		}
		std::vector<vision_box> all;
		for (size_t i = 0; i < found.size(); i++) {
			const cv::Rect &r = found[i];
			double weight = i < weights.size() ? weights[i] : 0;
			all.push_back({r.x, r.y, r.width, r.height, 1 / (1 + std::exp(-scale * weight))});
		}
		std::stable_sort(all.begin(), all.end(), [](const vision_box &a, const vision_box &b) { return a.score > b.score; });
		int n = std::min<int>(most, all.size());
		std::copy_n(all.begin(), n, boxes);
		return n;
	} catch (const std::exception &e) {
		say(fault, size, e.what());
		return -1;
	}
}

} // extern "C"
