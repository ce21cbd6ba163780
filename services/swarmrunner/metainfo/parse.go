package metainfo

import (
	"crypto/sha1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/anacrolix/torrent/bencode"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo/bencoding"
)

// ErrTruncated says that a torrent file ends in the middle.
var ErrTruncated = bencoding.ErrTruncated

// Parse reads a torrent file that describes one file. It refuses what has more
// than that file or nothing but version 2 of the format (BEP 52); a torrent of
// both versions is read as version 1.
func Parse(data []byte) (*Torrent, error) {
	t, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read torrent: %w", err)
	}
	return t, nil
}

func parse(data []byte) (*Torrent, error) {
	if len(data) > MaxInput {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(data), MaxInput)
	}
	if len(data) > 0 && data[0] != 'd' {
		return nil, errors.New("not a torrent: no dictionary")
	}
	var file struct {
		Announce     string        `bencode:"announce"`
		AnnounceList [][]string    `bencode:"announce-list"`
		Info         bencode.Bytes `bencode:"info"`
	}
	if err := bencoding.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	if len(file.Info) == 0 {
		return nil, errors.New("info: missing")
	}
	if file.Info[0] != 'd' {
		return nil, errors.New("info: no dictionary")
	}
	var in struct {
		info
		Files    bencode.Bytes `bencode:"files"`
		FileTree bencode.Bytes `bencode:"file tree"`
		Symlink  bencode.Bytes `bencode:"symlink path"`
	}
	if err := bencode.Unmarshal(file.Info, &in); err != nil {
		return nil, fmt.Errorf("info: %w", err)
	}
	switch {
	case in.Files != nil:
		return nil, errors.New("info.files: it describes several files, want one")
	case in.FileTree != nil && in.Pieces == nil:
		return nil, errors.New("info.file tree without info.pieces: version 2 alone (BEP 52), want version 1 or both")
	case in.Symlink != nil:
		return nil, errors.New("info.symlink path: it describes a link, want a file")
	}
	announce, announceErr := trackers(file.Announce, file.AnnounceList)
	if err := errors.Join(checkName(in.Name), checkSizes(&in.info), announceErr); err != nil {
		return nil, err
	}
	return &Torrent{
		Name: in.Name, Length: in.Length, PieceLength: in.PieceLength, Hashes: in.Pieces,
		InfoHash: sha1.Sum(file.Info), Announce: announce, info: file.Info,
	}, nil
}

// checkName keeps the file where its receiver wants it, and its name printable.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("info.name: missing or empty")
	case len(name) > maxName:
		return fmt.Errorf("info.name: %d bytes, want at most %d", len(name), maxName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("info.name: %q, want UTF-8 without control characters", name)
	case name == "." || name == ".." || strings.ContainsAny(name, `/\`):
		return fmt.Errorf("info.name: %q, want a plain file name", name)
	}
	return nil
}

func checkSizes(in *info) error {
	var faults []error
	if in.Length < 1 || in.Length > MaxLength {
		faults = append(faults, fmt.Errorf("info.length: %d, want 1 to %d", in.Length, int64(MaxLength)))
	}
	// Most programs make powers of two, libtorrent every multiple of 16 KiB.
	if p := in.PieceLength; p < MinPieceLength || p > MaxPieceLength || p%MinPieceLength != 0 {
		faults = append(faults, fmt.Errorf("info.piece length: %d, want a multiple of %d up to %d", p, MinPieceLength, MaxPieceLength))
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	pieces := (in.Length + in.PieceLength - 1) / in.PieceLength
	if pieces > MaxPieces {
		return fmt.Errorf("info.length: %d in pieces of %d are %d pieces, want at most %d", in.Length, in.PieceLength, pieces, MaxPieces)
	}
	if want := pieces * sha1.Size; int64(len(in.Pieces)) != want {
		return fmt.Errorf("info.pieces: %d bytes, want %d for %d pieces", len(in.Pieces), want, pieces)
	}
	return nil
}

// trackers is every URL once: the announce key's, then the tiers' in order.
func trackers(announce string, tiers [][]string) ([]string, error) {
	var urls []string
	add := func(field, url string) error {
		switch {
		case url == "" || slices.Contains(urls, url):
			return nil
		case len(url) > maxURL:
			return fmt.Errorf("%s: a URL of %d bytes, want at most %d", field, len(url), maxURL)
		case len(urls) == maxAnnounce:
			return fmt.Errorf("%s: more than %d URLs", field, maxAnnounce)
		}
		urls = append(urls, url)
		return nil
	}
	if err := add("announce", announce); err != nil {
		return nil, err
	}
	for _, tier := range tiers {
		for _, url := range tier {
			if err := add("announce-list", url); err != nil {
				return nil, err
			}
		}
	}
	return urls, nil
}
