package embedded

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/transferlab/transferlab/bus"
)

// roles are the users that are always there, by their role's name.
func roles() []string {
	return []string{
		bus.RoleOperator, bus.RoleAgent, bus.RoleCollector, bus.RoleScheduler, bus.RoleGateway, bus.RoleProvisioner,
		bus.RoleDetector, bus.RoleAutoscaler, bus.RoleEdge,
	}
}

// user is one who was added for a while.
type user struct {
	Role     string `json:"role"`
	Password string `json:"password"`
}

// credentials are the passwords of the roles, and users beside them. The file
// is one object: roles are names with strings.
type credentials struct {
	path  string
	roles map[string]string
	users map[string]user
}

const usersField = "users"

func loadCredentials(path string) (*credentials, error) {
	c := &credentials{path: path, roles: map[string]string{}, users: map[string]user{}}
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := c.parse(data); err != nil {
			return nil, fmt.Errorf("read credentials of the bus %s: %w", path, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read credentials of the bus: %w", err)
	}
	complete := true
	for _, role := range roles() {
		if c.roles[role] == "" {
			c.roles[role], complete = rand.Text(), false
		}
	}
	if complete {
		return c, nil
	}
	return c, c.save()
}

func (c *credentials) parse(data []byte) error {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return err
	}
	if users, found := fields[usersField]; found {
		if err := json.Unmarshal(users, &c.users); err != nil {
			return err
		}
		delete(fields, usersField)
	}
	for role, field := range fields {
		var password string
		if err := json.Unmarshal(field, &password); err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
		c.roles[role] = password
	}
	return nil
}

func (c *credentials) save() error {
	fields := map[string]any{}
	for role, password := range c.roles {
		fields[role] = password
	}
	if len(c.users) > 0 {
		fields[usersField] = c.users
	}
	data, err := json.MarshalIndent(fields, "", "  ")
	if err != nil {
		return fmt.Errorf("encode credentials of the bus: %w", err)
	}
	if err := writePrivate(c.path, data); err != nil {
		return fmt.Errorf("write credentials of the bus: %w", err)
	}
	return nil
}

// list is the server's form.
func (c *credentials) list() []*server.User {
	var all []*server.User
	for _, role := range slices.Sorted(maps.Keys(c.roles)) {
		all = append(all, &server.User{Username: role, Password: c.roles[role], Permissions: permissions(role)})
	}
	for _, name := range slices.Sorted(maps.Keys(c.users)) {
		all = append(all, &server.User{Username: name, Password: c.users[name].Password, Permissions: permissions(c.users[name].Role)})
	}
	return all
}

var userName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// AddUser lets somebody join by a name of their own with the rights of a role,
// until RemoveUser, also after a restart. The same name and role again give the
// same password.
func (s *Server) AddUser(name, role string) (password string, err error) {
	if !userName.MatchString(name) || slices.Contains(roles(), name) {
		return "", fmt.Errorf("user %q of the bus: want lower-case letters, digits and hyphens, at most 63, and not the name of a role", name)
	}
	if !slices.Contains(roles(), role) {
		return "", fmt.Errorf("user %s of the bus: unknown role %q", name, role)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u, found := s.credentials.users[name]; found {
		if u.Role != role {
			return "", fmt.Errorf("user %s of the bus is there already, as %s", name, u.Role)
		}
		return u.Password, nil
	}
	u := user{Role: role, Password: rand.Text() + rand.Text()}
	s.credentials.users[name] = u
	if err := errors.Join(s.credentials.save(), s.reload()); err != nil {
		delete(s.credentials.users, name)
		return "", fmt.Errorf("add user %s: %w", name, errors.Join(err, s.credentials.save()))
	}
	return u.Password, nil
}

// RemoveUser ends a user's rights and connections; one that is not there is no
// error.
func (s *Server) RemoveUser(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, found := s.credentials.users[name]; !found {
		return nil
	}
	delete(s.credentials.users, name)
	if err := errors.Join(s.credentials.save(), s.reload()); err != nil {
		return fmt.Errorf("remove user %s: %w", name, err)
	}
	return nil
}

// Users returns the names of those that were added, in order.
func (s *Server) Users() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.credentials.users))
}

// reload makes the server know the users as they are now.
func (s *Server) reload() error {
	options := s.options.Clone()
	options.Users = s.credentials.list()
	if err := s.ns.ReloadOptions(options); err != nil {
		return fmt.Errorf("reload users of the bus: %w", err)
	}
	return nil
}
